"""Submits a job: stream the prompts into shards, then the live marker, then the manifest, last.

Contract: a job exists exactly when its manifest does, and then its inputs are all there. Cut
anywhere before that, nothing runs and the same submission may simply be made again. The same id
with the same content is the same job; with other content it is refused and nothing of it stays. The
id of a removed job may be used again once nothing of that job is left.

The live marker is written even where there is one: its age keeps `ramole jobs prune` from it.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress

from producer.broker import Broker
from producer.pins import current_pins
from producer.shards import ShardWriter
from ramole_core import keys, messages
from ramole_core.errors import (
    BrokerUnavailableError,
    ConflictError,
    InvalidInputError,
    RamoleError,
)
from ramole_core.job_files import JobFiles
from ramole_core.jobs import JobOptions, Manifest, Pins, PromptRequest, Wire, utc_now
from ramole_core.store import ObjectStore


class SubmittedJob(Wire):
    """What a submission made, or found made already (`created` is false)."""

    job_id: str
    created: bool
    num_prompts: int
    num_bad_lines: int
    num_shards: int
    first_bad_line: str | None


class Submission:
    """Submissions of jobs to one store and broker."""

    def __init__(self, store: ObjectStore, broker: Broker) -> None:
        self._store = store
        self._broker = broker

    def submit(
        self, requests: Iterable[PromptRequest], job_id: str, options: JobOptions, strict: str = ""
    ) -> SubmittedJob:
        """Makes the job, or finds it made. `strict`: a dataset's name, to stop at a bad line.

        Raises InvalidInputError, ConflictError, UnavailableError.
        """
        if strict:
            requests = _stopping(requests, strict)
        job = JobFiles(self._store, job_id)
        remains = job.ended() or job.begun()  # looked for first: a job may be made meanwhile
        existing = job.find_manifest()
        if existing is not None:
            return self._again(existing, requests, options)
        if remains:
            raise ConflictError(
                f"job {job_id} was removed and something of it is left, which would count as the "
                "new job's; let `ramole jobs prune` finish, or choose another --job-id"
            )
        pins = current_pins(self._store, options)
        self._broker.check()
        writer = ShardWriter(self._store, job_id, secrets.token_hex(8), options)
        manifest, created = self._create(requests, writer, pins)
        self._start(job_id)
        return _submitted(manifest, created, writer)

    def _again(
        self, manifest: Manifest, requests: Iterable[PromptRequest], options: JobOptions
    ) -> SubmittedJob:
        writer = ShardWriter(None, manifest.job_id, "", options)
        writer.write_all(requests)
        _check_same(manifest, writer)
        if not JobFiles(self._store, manifest.job_id).ended():
            self._broker.check()
            self._store.put(keys.live(manifest.job_id), b"")
            self._start(manifest.job_id)
        return _submitted(manifest, False, writer)

    def _create(
        self, requests: Iterable[PromptRequest], writer: ShardWriter, pins: Pins
    ) -> tuple[Manifest, bool]:
        try:
            writer.write_all(requests)
            _check_any_good(writer)
            writer.check_stored()
        except BaseException:
            with suppress(RamoleError):
                writer.delete()
            raise
        manifest = writer.manifest(pins, utc_now().isoformat())
        job_id = manifest.job_id
        self._store.put(keys.live(job_id), b"")
        # From here on the inputs stay: a creation that seems to fail may yet have happened.
        if self._store.create(keys.manifest(job_id), manifest.model_dump_json().encode()):
            return manifest, True
        with suppress(RamoleError):
            writer.delete()
        winner = JobFiles(self._store, job_id).manifest()
        _check_same(winner, writer)
        return winner, False

    def _start(self, job_id: str) -> None:
        tell_workers(self._broker, job_id, "is stored and a worker will begin it")


def tell_workers(broker: Broker, job_id: str, done: str) -> None:
    """Has workers look at the job. Raises BrokerUnavailableError; `done` holds all the same, and
    workers find the job by listing."""
    try:
        broker.send(messages.START_JOB, job_id)
    except BrokerUnavailableError as e:
        raise BrokerUnavailableError(f"job {job_id} {done} when Redis is back; {e}") from e


def _check_any_good(writer: ShardWriter) -> None:
    if writer.num_prompts == 0:
        raise InvalidInputError("the dataset holds no prompt")
    if writer.num_prompts == writer.num_bad_lines:
        raise InvalidInputError(
            "no line of the dataset is a prompt, nothing is enqueued (is the --format right? "
            f"text, csv, parquet, jsonl); {writer.first_bad_line}"
        )


def _check_same(manifest: Manifest, writer: ShardWriter) -> None:
    if manifest.content_sha256 != writer.content.hexdigest():
        raise ConflictError(
            f"job {manifest.job_id} exists with other prompts or options "
            f"({manifest.num_prompts} prompts of {manifest.created_at}, "
            f"these are {writer.num_prompts}); choose another --job-id"
        )


def _stopping(requests: Iterable[PromptRequest], name: str) -> Iterator[PromptRequest]:
    for request in requests:
        if request.error is not None:
            raise InvalidInputError(f"{name}: {request.error.message} (--strict: nothing enqueued)")
        yield request


def _submitted(manifest: Manifest, created: bool, writer: ShardWriter) -> SubmittedJob:
    return SubmittedJob(
        job_id=manifest.job_id,
        created=created,
        num_prompts=manifest.num_prompts,
        num_bad_lines=manifest.num_bad_lines,
        num_shards=manifest.num_shards,
        first_bad_line=writer.first_bad_line,
    )
