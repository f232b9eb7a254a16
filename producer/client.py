"""The Python client; the commands of `ramole` are written with it.

    from producer import Client
    client = Client()
    job = client.submit("prompts.jsonl", k=3)
    client.wait(job.job_id)
    for result in client.results(job.job_id): ...

A Client is cheap, connects at its first call and is not shared between threads. Every method
raises errors of ramole_core.errors only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from producer.adapters import UPLOAD_SECONDS, AdapterDetails, AdapterRow, Adapters, Upload
from producer.broker import Broker
from producer.data_folder import check_data_folder
from producer.job_options import job_options
from producer.job_status import JobStatus, StatusReader
from producer.polling import Clock, poll
from producer.prune import Pruned, PrunedJob, Pruner, temporary_files
from producer.readers import Dataset, read_dataset, read_items
from producer.replies import Match, search
from producer.results import failed_requests, result_lines
from producer.retry import retry_id
from producer.submission import Submission, SubmittedJob, tell_workers
from producer.versions import EncoderRow, RouterRow, Versions
from ramole_core import keys, messages
from ramole_core.activations import Active
from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import (
    BrokerUnavailableError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
    TimedOutError,
)
from ramole_core.job_files import JobFiles
from ramole_core.jobs import PromptRequest, PromptResult, checked_name, new_job_id, utc_now
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore, open_store
from ramole_core.store.base import to_json

LISTING_THREADS: Final = 8
OUTAGE_SECONDS: Final = 600.0  # for so long `wait` waits for a store that went away


class Client:
    """Everything a producer does with one store and one Redis."""

    def __init__(self, settings: Settings | None = None, clock: Clock | None = None) -> None:
        self.settings = settings or Settings.load()
        self.broker = Broker(self.settings)
        self._clock = clock

    @cached_property
    def store(self) -> ObjectStore:
        """The object store, known to be there. Raises UnavailableError."""
        check_data_folder(self.settings)
        store = open_store(self.settings)
        store.check()
        return store

    @cached_property
    def _reader(self) -> StatusReader:
        return StatusReader(self.store, self.broker)

    @cached_property
    def _adapters(self) -> Adapters:
        return Adapters(self.settings, self.store, self.broker, self._clock)

    @cached_property
    def _versions(self) -> Versions:
        return Versions(self.store)

    def submit(
        self,
        source: str | Path | Dataset | Iterable[str | Mapping[str, Any]],
        job_id: str | None = None,
        strict: bool = False,
        **options: Any,
    ) -> SubmittedJob:
        """Submits a file (path, `-`, `store:KEY`) or an iterable of prompts or records.

        `options` are those of JobOptions. With a `job_id`, submitting equal content again is the
        same job; other content raises ConflictError. `strict` stops at the first bad line; a
        dataset without one good line is refused in any case.
        """
        checked = job_options(options)
        if isinstance(source, str | Path):
            source = Dataset(str(source))
        if isinstance(source, Dataset):
            requests, name = read_dataset(source, self.store), source.name
        else:
            requests, name = read_items(source), "prompts"
        if job_id is not None:
            checked_name("job id", job_id)
        job_id = job_id or new_job_id(utc_now())
        submission = Submission(self.store, self.broker)
        return submission.submit(requests, job_id, checked, strict=name if strict else "")

    def status(self, job_id: str) -> JobStatus:
        """How far a job is. Raises NotFoundError."""
        return self._reader.status(job_id)

    def jobs(
        self, on_unreadable: Callable[[ConflictError], None] = lambda error: None
    ) -> list[JobStatus]:
        """All jobs that can be read, oldest first, from the store alone."""

        def look(job_id: str) -> JobStatus | ConflictError | None:
            try:
                return self._reader.summary(job_id)
            except (NotFoundError, InvalidInputError):  # no manifest: no job
                return None
            except ConflictError as e:
                return e

        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            found = list(pool.map(look, self.store.children(keys.JOBS)))
        for error in found:
            if isinstance(error, ConflictError):
                on_unreadable(error)
        readable = (status for status in found if isinstance(status, JobStatus))
        return sorted(readable, key=lambda status: status.created_at)

    def wait(
        self,
        job_id: str,
        timeout_seconds: float | None = None,
        on_progress: Callable[[JobStatus], None] = lambda status: None,
        on_outage: Callable[[StoreUnavailableError], None] = lambda error: None,
    ) -> JobStatus:
        """The job's status once it has ended. Raises TimedOutError, NotFoundError.

        Redis and the store must answer at first. When Redis goes away later the store alone is
        looked at; when the store does, `on_outage` is told once, and after OUTAGE_SECONDS its error
        is raised.
        """
        last, clock = self.status(job_id), self._clock or Clock()
        away_since: float | None = None

        def look() -> JobStatus | None:
            nonlocal last, away_since
            try:
                last = self._seen(job_id)
            except StoreUnavailableError as e:
                if away_since is None:
                    away_since = clock.now()
                    on_outage(e)
                if clock.now() - away_since > OUTAGE_SECONDS:
                    raise
                return None
            away_since = None
            on_progress(last)
            return last if last.state.ended else None

        if poll(look, timeout_seconds, clock) is None:
            raise TimedOutError(
                f"job {job_id} is {last.state} after {timeout_seconds:g} s "
                f"({last.num_done} of {last.num_prompts} prompts done)"
            )
        return last

    def _seen(self, job_id: str) -> JobStatus:
        try:
            return self.status(job_id)
        except BrokerUnavailableError:
            return self._reader.summary(job_id)

    def results(self, job_id: str, partial: bool = False) -> Iterator[PromptResult]:
        """The results in the order of the prompts; with `partial` also of a job that runs."""
        return map(PromptResult.model_validate_json, self.result_lines(job_id, partial))

    def result_lines(self, job_id: str, partial: bool = False) -> Iterator[bytes]:
        """As `results`, but the JSON lines as they stand in the store."""
        return result_lines(self.store, job_id, partial)

    def cancel(self, job_id: str) -> JobStatus:
        """Stops a job; shards that are finished keep their results. Raises ConflictError, and
        BrokerUnavailableError: also when it is cancelled and the workers are yet to hear of it."""
        job = JobFiles(self.store, job_id)
        job.manifest()
        finished = job.finished()
        if finished is not None:
            raise ConflictError(f"job {job_id} has ended already ({finished.state()})")
        self.broker.check()
        record = to_json({"cancelled_at": utc_now().isoformat(timespec="milliseconds")})
        self.store.put(keys.cancelling(job_id), b"")  # found by listing when the message is lost
        self.store.create(keys.cancelled(job_id), record)
        tell_workers(self.broker, job_id, "is cancelled and workers let go of it")
        return self.status(job_id)

    def recover(self, job_id: str | None = None) -> list[str]:
        """Has workers take in anew what lies in the store of one job, or of all that have not
        ended, whatever Redis has lost; returns their ids. What is whole is left as it is. Raises
        NotFoundError, and ConflictError for a job that has ended."""
        if job_id is None:
            found = [job for job in self.store.children(keys.JOBS) if self._is_open(job)]
        else:
            manifest = JobFiles(self.store, job_id).manifest()
            found = [manifest.job_id]
            if not self._is_open(job_id):
                raise ConflictError(f"job {job_id} has ended already: there is nothing to recover")
        self.broker.check()
        for found_id in found:
            self.store.put(keys.live(found_id), b"")
            self.broker.send(messages.START_JOB, found_id)
        return found

    def _is_open(self, job_id: str) -> bool:
        with suppress(NotFoundError, InvalidInputError, ConflictError):  # no job
            job = JobFiles(self.store, job_id)
            return job.find_manifest() is not None and not job.ended()
        return False

    def retry(self, job_id: str) -> SubmittedJob:
        """A new job, `<job>-retry-N`, of the prompts that have no answer, with their options."""
        manifest = JobFiles(self.store, job_id).manifest()
        requests = _some(failed_requests(self.store, job_id), job_id)
        options = manifest.options.model_copy(update={"deadline": None})
        submission = Submission(self.store, self.broker)
        return submission.submit(requests, retry_id(self.store, job_id), options)

    def prune(
        self,
        older_than_seconds: float,
        dry_run: bool = False,
        on_job: Callable[[PrunedJob], None] = lambda job: None,
        on_progress: Callable[[Pruned], None] = lambda pruned: None,
    ) -> Pruned:
        """Removes jobs that ended longer ago, and what cut submissions and uploads left.

        Needs the store alone. May be cut and called again at any time. With `dry_run` nothing is
        removed and the same is reported.
        """
        now = utc_now().timestamp()
        with Pruner(self.store, older_than_seconds, now, dry_run, on_job, on_progress) as pruner:
            pruner.prune_jobs()
            pruner.prune_uploads()
            pruner.prune_messages()
            pruner.prune_markers()
            pruner.prune_files(temporary_files(self.store, self.settings.home / "tmp"))
            return pruner.pruned

    def upload_adapter(
        self,
        folder: str | Path,
        name: str,
        samples: str | Path | Sequence[str],
        wait: bool = True,
        timeout_seconds: float = UPLOAD_SECONDS,
    ) -> Upload:
        """Uploads an adapter as PEFT saves it; `samples` are texts or the file that holds them.

        Raises NotFoundError, AdapterRefusedError with the reason, UnavailableError, TimedOutError.
        """
        given = Path(samples) if isinstance(samples, str | Path) else samples
        return self._adapters.upload(Path(folder), name, given, wait, timeout_seconds)

    def upload_verdict(self, upload: Upload) -> Upload:
        """Waits for the verdict on an upload made with `wait=False`; raises as that would."""
        return self._adapters.verdict(upload.upload_id, upload.name)

    def adapters(self, with_removed: bool = False) -> list[AdapterRow]:
        """The active version of every adapter; with all old and removed ones if asked."""
        return self._adapters.rows(with_removed)

    def adapter(self, name: str, version: int | None = None) -> AdapterDetails:
        """One adapter: its versions and a card. Raises NotFoundError."""
        return self._adapters.details(name, version)

    def remove_adapter(
        self, name: str, version: int | None = None, any_owner: bool = False
    ) -> list[AdapterRef]:
        """Removes one version, or all of a name; returns those that still stood.

        Running jobs keep what they pinned. `any_owner`: also what somebody else uploaded.
        """
        return self._adapters.remove(name, version, any_owner)

    def search(
        self,
        text: str,
        k: int = 3,
        allow: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
    ) -> list[Match]:
        """The adapters a worker would retrieve for `text`, best first.

        Raises InvalidInputError, UnavailableError, TimedOutError.
        """
        question = {
            "text": text,
            "k": k,
            "allow_adapters": None if allow is None else list(allow),
            "exclude_adapters": list(exclude),
        }
        return search(self.store, self.broker, question, clock=self._clock)

    def encoders(self) -> list[EncoderRow]:
        """All encoder versions: the one of the workers' settings, then the trained ones."""
        return self._versions.encoders()

    def use_encoder(self, version: str) -> Active:
        """Puts an encoder in use for jobs submitted from now on. Raises NotFoundError."""
        return self._versions.use_encoder(version)

    def rollback_encoder(self) -> Active:
        """Goes back to the encoder before. Raises InvalidInputError when there is none."""
        return self._versions.rollback_encoder()

    def routers(self) -> list[RouterRow]:
        """All router versions, oldest first."""
        return self._versions.routers()

    def use_router(self, version: str | None) -> Active:
        """Puts a router (None: no router) in use for jobs submitted from now on.

        Raises NotFoundError, InvalidInputError when it was trained for another base model.
        """
        return self._versions.use_router(version)

    def rollback_router(self) -> Active:
        """Goes back to the router before, or none. Raises InvalidInputError."""
        return self._versions.rollback_router()


def _some(requests: Iterator[PromptRequest], job_id: str) -> Iterator[PromptRequest]:
    """The stream, refused before anything is written when it is empty."""
    first = next(requests, None)
    if first is None:
        raise InvalidInputError(f"job {job_id} has no failed prompt that could be tried again")
    yield first
    yield from requests
