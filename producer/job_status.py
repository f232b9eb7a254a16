"""How far a job is: derived at every look from the store and, while it runs, from Redis.

An ended job needs the store alone. Of a live job the counts of unfinished shards come from
Redis; a finished shard that Redis has forgotten is counted from its output.
"""

import sys
from collections.abc import Collection, Mapping

from pydantic import Field

from producer.broker import Broker
from ramole_core.job_files import JobFiles
from ramole_core.jobs import JobState, Manifest, Wire
from ramole_core.store import ObjectStore


class JobStatus(Wire):
    """One look at a job. Counts are prompts; `workers` counts live workers, None once ended."""

    job_id: str
    state: JobState
    num_prompts: int = Field(ge=0)
    num_bad_lines: int = Field(ge=0)
    num_done: int = Field(ge=0)
    num_ok: int = Field(ge=0)
    num_failed: int = Field(ge=0)
    num_shards: int = Field(ge=0)
    num_shards_done: int = Field(ge=0)
    created_at: str
    finished_at: str | None = None
    workers: int | None = None


class StatusReader:
    """Looks at jobs again and again; remembers the counts of finished shards."""

    def __init__(self, store: ObjectStore, broker: Broker) -> None:
        self._store = store
        self._broker = broker
        self._counted: dict[tuple[str, str], tuple[int, int]] = {}
        self._manifests: dict[str, Manifest] = {}
        self._num_done: dict[str, int] = {}  # job -> done shards that Redis knew at the last look
        self._forgotten: dict[str, set[str]] = {}

    def status(self, job_id: str) -> JobStatus:
        """The job now. Raises NotFoundError; for a live job BrokerUnavailableError."""
        job = JobFiles(self._store, job_id)
        manifest = self._manifest(job)
        ended = self._ended(job, manifest)
        if ended is not None:
            return ended
        self._broker.check()
        progress = self._broker.progress(job_id)
        status = self._live(job, manifest, progress)
        # The last shard may have finished, and the job have ended, between the looks above.
        return self._ended(job, manifest) or status

    def summary(self, job_id: str) -> JobStatus:
        """The job from the store alone; a live job's counts are those of its finished shards."""
        job = JobFiles(self._store, job_id)
        manifest = self._manifest(job)
        return self._ended(job, manifest) or self._live(job, manifest, None)

    def _manifest(self, job: JobFiles) -> Manifest:
        if job.job_id not in self._manifests:
            self._manifests[job.job_id] = job.manifest()
        return self._manifests[job.job_id]

    def _ended(self, job: JobFiles, manifest: Manifest) -> JobStatus | None:
        cancelled_at = job.cancelled_at()
        if cancelled_at is not None:
            counts = self._from_outputs(job, job.finished_shards())
            return _status(manifest, JobState.CANCELLED, counts, finished_at=cancelled_at)
        finished = job.finished()
        if finished is None:
            return None
        counts = {shard: (0, 0) for shard in manifest.shard_names()}
        totals = (finished.num_ok, finished.num_failed)
        return _status(
            manifest, finished.state(), counts, totals=totals, finished_at=finished.finished_at
        )

    def _live(
        self, job: JobFiles, manifest: Manifest, progress: Mapping[str, str] | None
    ) -> JobStatus:
        running = _parsed(progress or {}, "run")
        done = _parsed(progress or {}, "done")
        if progress is None:
            done = self._from_outputs(job, job.finished_shards())
        else:
            done |= self._from_outputs(job, self._forgotten_by_redis(job, done.keys()))
        parts = [counts for shard, counts in running.items() if shard not in done]
        totals = _sum([*done.values(), *parts])
        begun = bool(progress or done or job.attempts())
        state = JobState.RUNNING if begun else JobState.QUEUED
        workers = None if progress is None else len(self._broker.live_workers())
        return _status(manifest, state, done, totals=totals, workers=workers)

    def _forgotten_by_redis(self, job: JobFiles, done: Collection[str]) -> set[str]:
        """Finished shards that Redis does not know; listed anew only when Redis lost some."""
        if len(done) < self._num_done.get(job.job_id, sys.maxsize):
            self._forgotten[job.job_id] = job.finished_shards()
        self._num_done[job.job_id] = len(done)
        return self._forgotten[job.job_id] - set(done)

    def _from_outputs(self, job: JobFiles, shards: set[str]) -> dict[str, tuple[int, int]]:
        for shard in shards:
            if (job.job_id, shard) not in self._counted:
                self._counted[job.job_id, shard] = job.count(shard)
        return {shard: self._counted[job.job_id, shard] for shard in shards}


def _parsed(progress: Mapping[str, str], word: str) -> dict[str, tuple[int, int]]:
    """Shard -> (answered, failed) of the shards in that state."""
    found = {}
    for shard, text in progress.items():
        state, *counts = text.split()
        if state == word and len(counts) == 2:
            found[shard] = (int(counts[0]), int(counts[1]))
    return found


def _sum(counts: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(ok for ok, _ in counts), sum(failed for _, failed in counts)


def _status(
    manifest: Manifest,
    state: JobState,
    shards_done: Mapping[str, tuple[int, int]],
    totals: tuple[int, int] | None = None,
    finished_at: str | None = None,
    workers: int | None = None,
) -> JobStatus:
    num_ok, num_failed = _sum(list(shards_done.values())) if totals is None else totals
    return JobStatus(
        job_id=manifest.job_id,
        state=state,
        num_prompts=manifest.num_prompts,
        num_bad_lines=manifest.num_bad_lines,
        num_done=num_ok + num_failed,
        num_ok=num_ok,
        num_failed=num_failed,
        num_shards=manifest.num_shards,
        num_shards_done=len(shards_done),
        created_at=manifest.created_at,
        finished_at=finished_at,
        workers=workers,
    )
