"""Writes a stream of prompts as the shards of one submission, and hashes what it wrote.

The hash covers the options and every line, not the time, the submission or the job id: the same
dataset and options have the same hash. Memory holds the shard being filled and a few on their way.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from ramole_core import keys
from ramole_core.errors import InvalidInputError, UnavailableError
from ramole_core.jobs import MAX_SHARDS, JobOptions, Manifest, Pins, PromptRequest, shard_name
from ramole_core.store import ObjectStore

MAX_SHARD_BYTES: Final = 16 << 20
MAX_WRITES: Final = 4


class ContentHash:
    """sha256 over a job's options and the lines of its prompts."""

    def __init__(self, options: JobOptions) -> None:
        # The deadline is a time: a nightly job submitted again has another and is the same job.
        fixed = options.model_copy(update={"deadline": None})
        self._sha256 = hashlib.sha256(fixed.model_dump_json().encode() + b"\n")

    def add(self, line: bytes) -> None:
        """Takes in one line, with its newline."""
        self._sha256.update(line)

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._sha256.hexdigest()


class ShardWriter:
    """Collects prompts and writes a shard whenever it is full. Without a store it only hashes."""

    def __init__(
        self, store: ObjectStore | None, job_id: str, submission: str, options: JobOptions
    ) -> None:
        self.num_prompts = 0
        self.num_bad_lines = 0
        self.first_bad_line: str | None = None
        self.num_shards = 0
        self.content = ContentHash(options)
        self._store = store
        self._job_id = job_id
        self._submission = submission
        self._options = options
        self._lines: list[bytes] = []
        self._num_bytes = 0
        self._pool = ThreadPoolExecutor(MAX_WRITES)  # starts no thread before the first shard
        self._writes: deque[Future[None]] = deque()

    def write_all(self, requests: Iterable[PromptRequest]) -> None:
        """Writes the whole stream, the last and shorter shard too; on return all are stored."""
        try:
            for request in requests:
                self._add(request)
            self._flush()
            while self._writes:
                self._writes.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)  # waits for those on their way

    def manifest(self, pins: Pins, created_at: str) -> Manifest:
        """The manifest of what was written."""
        return Manifest(
            job_id=self._job_id,
            created_at=created_at,
            submission=self._submission,
            content_sha256=self.content.hexdigest(),
            options=self._options,
            pins=pins,
            num_prompts=self.num_prompts,
            num_bad_lines=self.num_bad_lines,
            num_shards=self.num_shards,
        )

    def check_stored(self) -> None:
        """Raises UnavailableError when what was written is not all there any more."""
        if self._store is None:
            return
        folder = keys.input_prefix(self._job_id, self._submission)
        names = set(self._store.children(folder))
        num_gone = sum(f"{shard_name(n)}.jsonl" not in names for n in range(self.num_shards))
        if num_gone:
            raise UnavailableError(
                f"job {self._job_id} was not made: {num_gone} of its {self.num_shards} shards are "
                "gone from the store (`ramole jobs prune` removes those of a submission that "
                "stands still for a day); submit it again"
            )

    def delete(self) -> None:
        """Removes what was written (a refused or outrun submission)."""
        if self._store is None:
            return
        for number in range(self.num_shards):
            self._store.delete(self._key(number))

    def _add(self, request: PromptRequest) -> None:
        line = request.model_dump_json(exclude_defaults=True).encode() + b"\n"
        if (
            len(self._lines) == self._options.shard_size
            or self._num_bytes + len(line) > MAX_SHARD_BYTES
        ):
            self._flush()
        self._lines.append(line)
        self._num_bytes += len(line)
        self.num_prompts += 1
        if request.error is not None:
            self.num_bad_lines += 1
            self.first_bad_line = self.first_bad_line or request.error.message
        self.content.add(line)

    def _flush(self) -> None:
        if not self._lines:
            return
        if self.num_shards >= MAX_SHARDS:
            raise InvalidInputError(
                f"more than {MAX_SHARDS} shards; submit with a larger --shard-size or in parts"
            )
        if self._store is not None:
            key, data = self._key(self.num_shards), b"".join(self._lines)
            self._writes.append(self._pool.submit(self._store.put, key, data))
        self.num_shards += 1
        while len(self._writes) > MAX_WRITES:
            self._writes.popleft().result()
        self._lines = []
        self._num_bytes = 0

    def _key(self, number: int) -> str:
        return keys.input_shard(self._job_id, self._submission, shard_name(number))
