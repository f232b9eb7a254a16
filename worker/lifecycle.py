"""A job's life outside its shards: taken in from the store, cancelled, ended."""

import logging
from collections.abc import Callable, Sequence

from redis import RedisError

from ramole_core import keys
from ramole_core.errors import NotFoundError, RamoleError, UnavailableError
from ramole_core.job_files import JobFiles
from ramole_core.jobs import Finished, Manifest, utc_now
from ramole_core.store import ObjectStore
from worker.ledger import Ledger
from worker.logs import working_on

logger = logging.getLogger(__name__)


class JobDesk:
    """Moves jobs between the store and the ledger. Every method may be called again at any time."""

    def __init__(self, store: ObjectStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._complaints: set[tuple[str, str]] = set()  # jobs that cannot be read, and why

    def start(self, job_id: str) -> bool:
        """Takes a job in, or lets go of one that was cancelled. True when it is in the ledger.

        One of which the ledger has lost shards (Redis came back with old data) is taken in anew.
        A job the store does not have (a live marker without a manifest) is left alone: its
        submission is under way or was given up.
        """
        job = JobFiles(self._store, job_id)
        if job.ended():
            self._let_go(job_id)
            return False
        manifest = job.find_manifest()
        if manifest is None:
            return False
        known = self._ledger.known([job_id])[0]
        if known and not self._ledger.is_whole(job_id):
            logger.warning("the ledger has lost shards of this job: it is taken in anew")
            self._ledger.forget(job_id)
            known = False
        if not known:
            self._adopt(job, manifest)
        return True

    def scan(self) -> None:
        """Compares the store with the ledger: takes in jobs it does not know, cancels the rest.

        A job that cannot be read is logged and keeps nobody else waiting.
        """
        live = self._listed(keys.LIVE_JOBS)
        known = self._ledger.known(live)
        unknown = [job_id for job_id, is_known in zip(live, known, strict=True) if not is_known]
        for job_id in [*self._listed(keys.CANCELLING_JOBS), *unknown, *self._broken(live, known)]:
            self._guarded(self.start, job_id)

    def _broken(self, live: Sequence[str], known: Sequence[bool]) -> list[str]:
        """Those known of which shards are lost."""
        pairs = zip(live, known, strict=True)
        return [job for job, is_known in pairs if is_known and not self._ledger.is_whole(job)]

    def finalise_all(self) -> None:
        """Ends the jobs whose last worker died between its shard and the final record."""
        for job_id in self._ledger.finalising():
            self._guarded(self.finalise, job_id)

    def finalise(self, job_id: str) -> None:
        """Writes the final record of a job whose shards are all done, then forgets it.

        Prompts without an answer count as failed, those of a lost input too.
        """
        job = JobFiles(self._store, job_id)
        manifest = job.find_manifest()
        if manifest is not None and not job.ended():
            num_ok = sum(self._num_ok(job, manifest))
            final = Finished(
                finished_at=utc_now().isoformat(timespec="milliseconds"),
                num_ok=num_ok,
                num_failed=manifest.num_prompts - num_ok,
            )
            self._store.create(keys.finished(job_id), final.model_dump_json().encode())
            logger.info("job %s: %d answered, %d failed", final.state(), num_ok, final.num_failed)
        self._store.delete(keys.live(job_id))
        self._ledger.forget(job_id)

    def _num_ok(self, job: JobFiles, manifest: Manifest) -> list[int]:
        """Answers of each shard: from the ledger, or counted where it does not know."""
        progress = self._ledger.progress(job.job_id)
        states = {shard: progress.get(shard, "").split() for shard in manifest.shard_names()}
        return [
            int(state[1]) if state[:1] == ["done"] else job.count(shard)[0]
            for shard, state in states.items()
        ]

    def _let_go(self, job_id: str) -> None:
        if self._store.exists(keys.cancelled(job_id)):
            self._ledger.cancel(job_id)
            logger.info("job cancelled")
        self._store.delete(keys.live(job_id))
        self._store.delete(keys.cancelling(job_id))

    def _adopt(self, job: JobFiles, manifest: Manifest) -> None:
        names = manifest.shard_names()
        done = job.finished_shards() & set(names)
        pending = [shard for shard in names if shard not in done]
        priority, attempts = manifest.options.priority, job.attempts()
        if self._ledger.adopt(job.job_id, priority, len(names), pending, done, attempts):
            logger.info(
                "job taken in: %d prompts in %d shards, %d of them done already",
                manifest.num_prompts,
                len(names),
                len(done),
            )

    def _listed(self, prefix: str) -> list[str]:
        return [entry.key.removeprefix(prefix) for entry in self._store.entries(prefix)]

    def _guarded(self, work: Callable[[str], object], job_id: str) -> None:
        with working_on(job=job_id):
            try:
                work(job_id)
            except (UnavailableError, RedisError):
                raise
            except NotFoundError as e:
                logger.error("an output is gone, the job is taken in anew: %s", e)
                self._ledger.forget(job_id)
            except (RamoleError, ValueError) as e:
                if (job_id, str(e)) not in self._complaints:
                    self._complaints.add((job_id, str(e)))
                    logger.error("the job cannot be read: %s", e)
