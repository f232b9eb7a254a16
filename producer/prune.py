"""Removes what nobody needs any more: jobs that ended long ago, and what cuts left behind.

Of a job the manifest goes first, and from then on there is no such job; the records of how it ended
go last. So no job looks open because half of it is gone, a removal that was cut is found and
finished by the next one, and a submission knows an id of which something is left. A job that has
not ended stays, and so does everything younger than the age: of a job since its end, of the rest
since it was last written to (by the store's clock; of files by this machine's).

What was cut, and cancelled jobs, are kept for a day at least: a submission or an upload may be
under way, and workers remember a cancelled id for that long.

While a removal goes on, another one may finish the job and its id be used again. So how the job
ended is read again after the listing: unchanged, all that was listed is of the ended job. And
before each object goes the manifest is looked for: where there is one again, the object may be a
new job's. Times of objects do not decide that: in a copied or restored store they are all new.
"""

import datetime
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pydantic import Field

from ramole_core import keys
from ramole_core.adapters.staging import UPLOAD_FILE
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.jobs import Wire, checked_name, parse_time
from ramole_core.store import ObjectInfo, ObjectStore
from ramole_core.store.base import get_json, local_file

DAY_SECONDS: Final = 86400.0
THREADS: Final = 8


class PrunedJob(Wire):
    """One job that was removed, or would be."""

    job_id: str
    ended_at: str
    num_objects: int = Field(ge=0)
    size_bytes: int = Field(ge=0)


class Pruned(Wire):
    """All that was removed, or would be; `num_objects` counts files, too."""

    dry_run: bool
    num_jobs: int = Field(default=0, ge=0)
    num_submissions: int = Field(default=0, ge=0)
    num_uploads: int = Field(default=0, ge=0)
    num_messages: int = Field(default=0, ge=0)
    num_markers: int = Field(default=0, ge=0)
    num_files: int = Field(default=0, ge=0)
    num_objects: int = Field(default=0, ge=0)
    size_bytes: int = Field(default=0, ge=0)


def _always(info: ObjectInfo) -> bool:
    return True


class Pruner:
    """One removal, step by step; a context manager that ends its threads."""

    def __init__(
        self,
        store: ObjectStore,
        older_than_seconds: float,
        now_seconds: float,
        dry_run: bool = False,
        on_job: Callable[[PrunedJob], None] = lambda job: None,
        on_progress: Callable[[Pruned], None] = lambda pruned: None,
    ) -> None:
        self._store = store
        self._before = now_seconds - older_than_seconds
        self._before_rest = now_seconds - max(older_than_seconds, DAY_SECONDS)
        self._dry_run = dry_run
        self._on_job = on_job
        self._on_progress = on_progress
        self._tally: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(THREADS)

    def __enter__(self) -> "Pruner":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def pruned(self) -> Pruned:
        """What is gone so far."""
        return Pruned(dry_run=self._dry_run, **self._tally)

    def prune_jobs(self) -> None:
        """Jobs that ended, and inputs of submissions that never became a job."""
        ids = [name for name in self._store.children(keys.JOBS) if _is_name(name)]
        for job_id, ended in zip(ids, self._pool.map(self._end_record, ids), strict=True):
            if ended is None:
                self._prune_submission(job_id)
            elif self._has_passed(*ended):
                self._prune_job(job_id, ended)

    def prune_uploads(self) -> None:
        """Uploads cut before they were whole, or while a worker cleared them away."""
        staged = self._store.entries(keys.STAGING)
        for upload_id, group in itertools.groupby(staged, lambda info: info.key.split("/")[1]):
            found, whole = list(group), keys.staging(upload_id) + UPLOAD_FILE
            if not _is_name(upload_id) or not self._are_old(found):
                continue
            if any(info.key == whole for info in found):
                if not self._store.exists(keys.reply(upload_id)):
                    continue  # its turn comes
                self._remove([info for info in found if info.key == whole])
            self._remove([info for info in found if info.key != whole])
            self._tally["num_uploads"] += 1

    def prune_messages(self) -> None:
        """Questions, answers and probes that somebody was cut off from; verdicts on uploads."""
        for prefix in (keys.REQUESTS, keys.REPLIES, keys.PROBES):
            self._prune_each("num_messages", self._store.entries(prefix))

    def prune_markers(self) -> None:
        """Markers of jobs that are gone or have ended."""
        for prefix in (keys.LIVE_JOBS, keys.CANCELLING_JOBS):
            self._prune_each("num_markers", self._store.entries(prefix), self._is_stale)

    def prune_files(self, paths: Iterable[Path]) -> None:
        """Temporary files and folders on this machine's disk."""
        for path in paths:
            modified, size = _looked_at(path)
            if modified >= self._before_rest:
                continue
            if not self._dry_run:
                _delete_file(path)
            self._tally["num_files"] += 1
            self._gone(size)

    def _end_record(self, job_id: str) -> tuple[bool, float] | None:
        """(was it cancelled, when it ended); None for what has not ended."""
        finished = self._time(keys.finished(job_id), "finished_at")
        cancelled = self._time(keys.cancelled(job_id), "cancelled_at")
        times = [time for time in (finished, cancelled) if time is not None]
        return (cancelled is not None, max(times)) if times else None

    def _time(self, key: str, field: str) -> float | None:
        """Unix time, None without the record; a damaged one keeps its job for ever."""
        try:
            time = parse_time(get_json(self._store, key)[field])
            return time.astimezone(datetime.UTC).timestamp()  # refuses what has no UTC time
        except NotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return float("inf")

    def _has_passed(self, was_cancelled: bool, ended_seconds: float) -> bool:
        return ended_seconds < (self._before_rest if was_cancelled else self._before)

    def _is_stale(self, marker: ObjectInfo) -> bool:
        job_id = marker.key.partition("/")[2]
        known = _is_name(job_id) and self._store.exists(keys.manifest(job_id))
        return not known or self._end_record(job_id) is not None

    def _prune_job(self, job_id: str, ended: tuple[bool, float]) -> None:
        found = list(self._store.entries(keys.job(job_id)))
        if self._end_record(job_id) != ended:
            return
        row = _row(job_id, ended[1], found)
        first = {keys.manifest(job_id)}
        last = {keys.finished(job_id), keys.cancelled(job_id)}
        self._remove([info for info in found if info.key in first])
        is_ours = self._without_manifest(job_id)
        self._remove([info for info in found if info.key not in first | last], is_ours)
        self._remove([info for info in found if info.key in last], is_ours)
        self._tally["num_jobs"] += 1
        self._on_job(row)

    def _without_manifest(self, job_id: str) -> Callable[[ObjectInfo], bool]:
        """What no job holds; a dry run leaves the manifest where it is."""
        key = keys.manifest(job_id)
        return lambda info: self._dry_run or not self._store.exists(key)

    def _prune_submission(self, job_id: str) -> None:
        """Looks for the manifest last: what was written in between makes the folder young."""
        found = list(self._store.entries(keys.job(job_id)))
        if not self._are_old(found) or self._store.exists(keys.manifest(job_id)):
            return
        self._remove(found, self._without_manifest(job_id))
        self._tally["num_submissions"] += 1

    def _prune_each(
        self,
        counter: str,
        found: Iterable[ObjectInfo],
        may_go: Callable[[ObjectInfo], bool] = _always,
    ) -> None:
        old = [info for info in found if self._are_old([info])]
        self._tally[counter] += self._remove(old, may_go)

    def _are_old(self, found: Sequence[ObjectInfo]) -> bool:
        return all(info.modified_seconds < self._before_rest for info in found)

    def _remove(
        self, found: Sequence[ObjectInfo], may_go: Callable[[ObjectInfo], bool] = _always
    ) -> int:
        """All that may go, asked right before, in no order; how many went. What is no key to the
        store stays."""
        num_gone = 0
        removals = self._pool.map(lambda info: self._delete(info, may_go), found)
        for info, is_gone in zip(found, removals, strict=True):
            if is_gone:
                num_gone += 1
                self._gone(info.size_bytes)
        return num_gone

    def _delete(self, info: ObjectInfo, may_go: Callable[[ObjectInfo], bool]) -> bool:
        try:
            if not may_go(info):
                return False
            if not self._dry_run:
                self._store.delete(info.key)
        except (InvalidInputError, NotFoundError, UnicodeError):
            return False
        return True

    def _gone(self, size_bytes: int) -> None:
        self._tally["num_objects"] += 1
        self._tally["size_bytes"] += size_bytes
        self._on_progress(self.pruned)


def temporary_files(store: ObjectStore, folder: Path) -> Iterator[Path]:
    """Unfinished files of a directory store, and what workers keep in `folder` for a while."""
    unfinished = getattr(store, "unfinished", None)
    if unfinished is not None:
        yield from unfinished()
    with local_file(folder):
        yield from sorted(folder.glob("*"))


def _row(job_id: str, ended_seconds: float, found: Sequence[ObjectInfo]) -> PrunedJob:
    return PrunedJob(
        job_id=job_id,
        ended_at=datetime.datetime.fromtimestamp(ended_seconds, datetime.UTC).isoformat(),
        num_objects=len(found),
        size_bytes=sum(info.size_bytes for info in found),
    )


def _is_name(text: str) -> bool:
    try:
        return bool(checked_name("name", text))
    except InvalidInputError:
        return False


def _looked_at(path: Path) -> tuple[float, int]:
    """(Unix time of the newest write, bytes) of a file or folder; one that vanishes is new."""
    try:
        found = [entry.lstat() for entry in (path, *path.rglob("*"))]
    except FileNotFoundError:
        return float("inf"), 0
    return max(entry.st_mtime for entry in found), sum(entry.st_size for entry in found)


def _delete_file(path: Path) -> None:
    with local_file(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
