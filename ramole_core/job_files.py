"""One job as it lies in the store: manifest, inputs, outputs, how it ended. Needs no Redis.

What is there and cannot be read raises ConflictError.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import TypeVar

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.errors import ConflictError, NotFoundError, printable
from ramole_core.jobs import (
    Finished,
    Manifest,
    PromptRequest,
    PromptResult,
    Wire,
    checked_name,
)
from ramole_core.store import ObjectStore
from ramole_core.store.base import get_json

Record = TypeVar("Record", bound=Wire)


class JobFiles:
    """Reads a job's objects. Raises NotFoundError for a job without a manifest."""

    def __init__(self, store: ObjectStore, job_id: str) -> None:
        self.job_id = checked_name("job id", job_id)
        self._store = store

    def manifest(self) -> Manifest:
        """The job's manifest."""
        key = keys.manifest(self.job_id)
        try:
            manifest = self._read(Manifest, key)
        except NotFoundError as e:
            raise NotFoundError(
                f"there is no job {self.job_id}; `ramole jobs` lists what there is"
            ) from e
        if manifest.job_id != self.job_id:
            raise ConflictError(
                f"{key} is the manifest of job {manifest.job_id}: a copied job cannot be used; "
                "remove its folder"
            )
        return manifest

    def find_manifest(self) -> Manifest | None:
        """The job's manifest, or None."""
        try:
            return self.manifest()
        except NotFoundError:
            return None

    def finished(self) -> Finished | None:
        """The final counts, once there are."""
        try:
            return self._read(Finished, keys.finished(self.job_id))
        except NotFoundError:
            return None

    def cancelled_at(self) -> str | None:
        """When the job was cancelled, if it was."""
        try:
            return str(get_json(self._store, keys.cancelled(self.job_id))["cancelled_at"])
        except NotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise _damaged(keys.cancelled(self.job_id), e) from e

    def ended(self) -> bool:
        """True when no further result will come."""
        cancelled = self._store.exists(keys.cancelled(self.job_id))
        return cancelled or self._store.exists(keys.finished(self.job_id))

    def begun(self) -> bool:
        """True when a worker has taken up the job."""
        return bool(self.finished_shards() or self.attempts())

    def attempts(self) -> dict[str, list[int]]:
        """The numbers of the attempts of each shard that was begun, as far as the store knows."""
        prefix, found = keys.attempts(self.job_id), defaultdict[str, list[int]](list)
        for entry in self._store.entries(prefix):
            shard, _, name = entry.key.removeprefix(prefix).partition("/")
            number = name.removesuffix(".json")
            if number.isdecimal() and entry.key == keys.attempt(self.job_id, shard, int(number)):
                found[shard].append(int(number))
        return dict(found)

    def finished_shards(self) -> set[str]:
        """Names of the shards whose output exists. One listing."""
        prefix = keys.outputs(self.job_id)
        names = (entry.key.removeprefix(prefix) for entry in self._store.entries(prefix))
        return {
            name.removesuffix(".jsonl")
            for name in names
            if name.endswith(".jsonl") and "/" not in name
        }

    def output_lines(self, shard: str) -> list[bytes]:
        """The result lines of one finished shard. Raises NotFoundError."""
        return self._store.get(keys.output_shard(self.job_id, shard)).splitlines()

    def results(self, shard: str) -> Iterator[PromptResult]:
        """The results of one finished shard. Raises NotFoundError."""
        key = keys.output_shard(self.job_id, shard)
        return (_parsed(PromptResult, key, line) for line in self.output_lines(shard))

    def requests(self, manifest: Manifest, shard: str) -> Iterator[PromptRequest]:
        """The prompts of one shard."""
        key = keys.input_shard(self.job_id, manifest.submission, shard)
        return (_parsed(PromptRequest, key, line) for line in self._store.get(key).splitlines())

    def count(self, shard: str) -> tuple[int, int]:
        """(answered, failed) of one finished shard. Raises NotFoundError."""
        lines = self.output_lines(shard)
        try:
            failed = sum(json.loads(line).get("error") is not None for line in lines)
        except (ValueError, AttributeError, RecursionError) as e:
            raise _damaged(keys.output_shard(self.job_id, shard), e) from e
        return len(lines) - failed, failed

    def _read(self, record: type[Record], key: str) -> Record:
        return _parsed(record, key, self._store.get(key))


def _parsed(record: type[Record], key: str, data: bytes) -> Record:
    try:
        return record.model_validate_json(data)
    except ValidationError as e:
        raise _damaged(key, e) from e


def _damaged(key: str, error: Exception) -> ConflictError:
    """One line, and not what was found there."""
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return ConflictError(f"{key} is not readable by this version: {printable(why[:200])}")
