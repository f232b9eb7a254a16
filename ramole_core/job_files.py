"""One job as it lies in the store: manifest, inputs, outputs, how it ended. Needs no Redis."""

import json
from collections.abc import Iterator

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.errors import ConflictError, NotFoundError
from ramole_core.jobs import (
    Finished,
    Manifest,
    PromptRequest,
    PromptResult,
    checked_name,
)
from ramole_core.store import ObjectStore
from ramole_core.store.base import get_json


class JobFiles:
    """Reads a job's objects. Raises NotFoundError for a job without a manifest."""

    def __init__(self, store: ObjectStore, job_id: str) -> None:
        self.job_id = checked_name("job id", job_id)
        self._store = store

    def manifest(self) -> Manifest:
        """The job's manifest. Raises ConflictError when it cannot be read."""
        try:
            return Manifest.model_validate_json(self._store.get(keys.manifest(self.job_id)))
        except NotFoundError as e:
            raise NotFoundError(
                f"there is no job {self.job_id}; `ramole jobs` lists what there is"
            ) from e
        except ValidationError as e:
            raise ConflictError(
                f"{keys.manifest(self.job_id)} is not a manifest of this version: {e.errors()[0]}"
            ) from e

    def find_manifest(self) -> Manifest | None:
        """The job's manifest, or None."""
        try:
            return self.manifest()
        except NotFoundError:
            return None

    def finished(self) -> Finished | None:
        """The final counts, once there are."""
        try:
            return Finished.model_validate_json(self._store.get(keys.finished(self.job_id)))
        except NotFoundError:
            return None

    def cancelled_at(self) -> str | None:
        """When the job was cancelled, if it was."""
        try:
            return str(get_json(self._store, keys.cancelled(self.job_id))["cancelled_at"])
        except NotFoundError:
            return None

    def ended(self) -> bool:
        """True when no further result will come."""
        cancelled = self._store.exists(keys.cancelled(self.job_id))
        return cancelled or self._store.exists(keys.finished(self.job_id))

    def begun(self) -> bool:
        """True when a worker has taken up the job."""
        return bool(self._store.children(keys.attempts(self.job_id)) or self.finished_shards())

    def finished_shards(self) -> set[str]:
        """Names of the shards whose output exists."""
        names = self._store.children(keys.outputs(self.job_id))
        return {name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")}

    def output_lines(self, shard: str) -> list[bytes]:
        """The result lines of one finished shard. Raises NotFoundError."""
        return self._store.get(keys.output_shard(self.job_id, shard)).splitlines()

    def results(self, shard: str) -> Iterator[PromptResult]:
        """The results of one finished shard. Raises NotFoundError."""
        return map(PromptResult.model_validate_json, self.output_lines(shard))

    def requests(self, manifest: Manifest, shard: str) -> Iterator[PromptRequest]:
        """The prompts of one shard."""
        data = self._store.get(keys.input_shard(self.job_id, manifest.submission, shard))
        return map(PromptRequest.model_validate_json, data.splitlines())

    def count(self, shard: str) -> tuple[int, int]:
        """(answered, failed) of one finished shard. Raises NotFoundError."""
        lines = self.output_lines(shard)
        failed = sum(json.loads(line).get("error") is not None for line in lines)
        return len(lines) - failed, failed
