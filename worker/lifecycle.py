"""A job's life outside its shards: taken in from the store, cancelled, ended."""

import logging
from collections import defaultdict

from ramole_core import keys
from ramole_core.errors import NotFoundError
from ramole_core.jobs import Finished, Manifest, utc_now
from ramole_core.store import ObjectStore
from worker.ledger import Ledger
from worker.shards import count_results, load_manifest

logger = logging.getLogger(__name__)


class JobDesk:
    """Moves jobs between the store and the ledger. Every method may be called again at any time."""

    def __init__(self, store: ObjectStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    def start(self, job_id: str) -> bool:
        """Takes a job in, or lets go of one that was cancelled. True when it is in the ledger.

        A job the store does not have (a live marker without a manifest) is left alone: its
        submission is under way or was given up.
        """
        if self._store.exists(keys.cancelled(job_id)):
            self._ledger.cancel(job_id)
            self._store.delete(keys.live(job_id))
            logger.info("job cancelled")
            return False
        if self._store.exists(keys.finished(job_id)):
            self._store.delete(keys.live(job_id))
            return False
        try:
            manifest = load_manifest(self._store, job_id)
        except NotFoundError:
            return False
        if not self._ledger.known([job_id])[0]:
            self._adopt(manifest)
        return True

    def start_all(self) -> int:
        """Takes in every live job of the store that the ledger does not know."""
        job_ids = [
            entry.key.removeprefix(keys.LIVE_JOBS) for entry in self._store.entries(keys.LIVE_JOBS)
        ]
        unknown = [
            job_id
            for job_id, known in zip(job_ids, self._ledger.known(job_ids), strict=True)
            if not known
        ]
        return sum(self.start(job_id) for job_id in unknown)

    def finalise(self, job_id: str) -> None:
        """Writes the final record of a job whose shards are all done, then forgets it."""
        manifest = load_manifest(self._store, job_id)
        progress = self._ledger.progress(job_id)
        num_ok = num_failed = 0
        for shard in manifest.shard_names():
            word, _, counts = progress.get(shard, "").partition(" ")
            ok, failed = (
                map(int, counts.split())
                if word == "done"
                else count_results(self._store, job_id, shard)
            )
            num_ok, num_failed = num_ok + ok, num_failed + failed
        final = Finished(
            finished_at=utc_now().isoformat(timespec="milliseconds"),
            num_ok=num_ok,
            num_failed=num_failed,
        )
        self._store.create(keys.finished(job_id), final.model_dump_json().encode())
        self._store.delete(keys.live(job_id))
        self._ledger.forget(job_id)
        logger.info("job %s: %d answered, %d failed", final.state(), num_ok, num_failed)

    def _adopt(self, manifest: Manifest) -> None:
        job_id = manifest.job_id
        folder = keys.outputs(job_id)
        done = {
            entry.key.removeprefix(folder).removesuffix(".jsonl")
            for entry in self._store.entries(folder)
        }
        attempts: dict[str, int] = defaultdict(int)
        for entry in self._store.entries(keys.attempts(job_id)):
            attempts[entry.key.removeprefix(keys.attempts(job_id)).partition("/")[0]] += 1
        pending = [shard for shard in manifest.shard_names() if shard not in done]
        adopted = self._ledger.adopt(
            job_id, manifest.options.priority, manifest.num_shards, pending, done, attempts
        )
        if adopted:
            logger.info(
                "job taken in: %d prompts in %d shards, %d of them done already",
                manifest.num_prompts,
                manifest.num_shards,
                len(done),
            )
