"""One shard, from its claim to its acknowledgement.

load -> retrieve -> generate -> store -> mark done. Cut anywhere, another worker begins again: the
output is created once, and what is marked done is read back from it. An outage of the store gives
the attempt back. Every shard ends: prompts that kill their process are failed (`worker.deaths`), a
shard begun too often for other reasons has all its prompts failed, one that takes too long those
that are not answered. Of a cancelled job's shard, what is answered is kept.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from typing import Final

from redis import RedisError

from ramole_core import keys
from ramole_core.adapters.registry import Registry
from ramole_core.engine.engine import Engine
from ramole_core.engine.request import GenerationFuture
from ramole_core.errors import (
    NotFoundError,
    PromptError,
    RamoleError,
    StoreUnavailableError,
    TooLargeError,
    UnavailableError,
)
from ramole_core.job_files import JobFiles
from ramole_core.jobs import ErrorRecord, Manifest, PromptRequest, PromptResult, parse_time, utc_now
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore
from ramole_core.store.base import to_json
from worker.deaths import Charges, charges_of
from worker.encoders import Encoders
from worker.encoding import embedding_for
from worker.inputs import parse, stand_ins
from worker.journal import Journal, PromptRef
from worker.leases import LeaseKeeper
from worker.ledger import Claim, Ledger, ShardRef
from worker.quiet import Quiet
from worker.results import failure, has_failed, outage, result_of, submitted
from worker.routing import Routed, route

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
DEADLINE: Final = PromptError("deadline", "the job's deadline passed")
CANCELLED: Final = PromptError("cancelled", "the job was cancelled")


class ShardAbandonedError(RamoleError):
    """Raised when a shard is to be let go: drain, a lost lease, a cancelled job."""

    code = "abandoned"

    def __init__(self, message: str, is_drain: bool = False) -> None:
        super().__init__(message)
        self.is_drain = is_drain  # shard and attempt are given back


class ShardRunner:
    """Runs claimed shards; one instance serves all task threads."""

    def __init__(
        self,
        store: ObjectStore,
        ledger: Ledger,
        leases: LeaseKeeper,
        registry: Registry,
        encoders: Encoders,
        engine: Engine,
        draining: threading.Event,
        on_done: Callable[[ShardRef, bool], None],
        journal: Journal,
        quiet: Quiet,
        settings: Settings,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._leases = leases
        self._registry = registry
        self._encoders = encoders
        self._engine = engine
        self._draining = draining
        self._on_done = on_done
        self._journal = journal
        self._quiet = quiet
        self._shard_seconds = settings.shard_seconds
        self._max_attempts = settings.max_attempts
        self._max_alone = max(1, settings.max_attempts - 1)

    def run(self, claim: Claim) -> None:
        """Works on a claimed shard to its end.

        Raises ShardAbandonedError when it was let go (its attempt is given back on a drain), and
        UnavailableError or RedisError on an outage, after giving the attempt back. After any
        other error the lease runs out and the shard is begun again, max_attempts times in all.
        """
        with self._journal.holding(claim):
            try:
                job_done = self._run(claim)
            except (UnavailableError, RedisError) as e:
                with suppress(RedisError):  # an outage is nobody's attempt; it is sent again
                    self._ledger.pardon(claim)
                if not isinstance(e, StoreUnavailableError):
                    with suppress(UnavailableError):
                        self._store.delete(_note_key(claim))
                raise
        self._on_done(claim.ref, job_done)

    def _run(self, claim: Claim) -> bool:
        """True when it was the last shard of its job."""
        ref = claim.ref
        try:
            with self._leases.holding(claim):
                if not self._store.exists(keys.output_shard(ref.job_id, ref.shard)):
                    self._write(ref, self._answers(claim))
            return self._marked_done(ref)
        except (UnavailableError, RedisError):
            raise
        except ShardAbandonedError as e:
            if e.is_drain:
                self._store.delete(_note_key(claim))
                self._ledger.release(claim)
            raise
        except Exception as e:
            self._note(claim, f"{type(e).__name__}: {e}"[:500])
            raise

    def _answers(self, claim: Claim) -> list[PromptResult]:
        job = JobFiles(self._store, claim.ref.job_id)
        if claim.exhausted:
            return self._given_up(job, claim)
        self._note(claim)
        manifest = job.manifest()
        prompts = self._load(manifest, claim)
        if manifest.pins.router is not None:
            self._engine.read_router(manifest.pins.router)
        if manifest.pins.registry > self._registry.position:
            self._registry.refresh()
        charges = charges_of(self._store, claim.ref.job_id)
        with embedding_for(claim):
            routed = route(prompts, manifest, self._encoders, self._registry)
        return self._generate(claim, routed, manifest, charges)

    def _load(self, manifest: Manifest, claim: Claim) -> list[PromptRequest]:
        key = keys.input_shard(claim.ref.job_id, manifest.submission, claim.ref.shard)
        with self._journal.preparing(claim):
            data = self._store.get(key)
            with self._quiet.preparing():
                return parse(data, manifest, claim.ref.shard)

    def _generate(
        self, claim: Claim, routed: list[Routed], manifest: Manifest, charges: Charges
    ) -> list[PromptResult]:
        futures = self._all_submitted(claim, routed, charges)
        try:
            cut = self._wait(claim, futures, manifest.options.deadline)
        except BaseException:
            for future in futures:
                future.end()
            raise
        if (error := outage(futures)) is not None:
            raise error
        if cut is CANCELLED and all(map(has_failed, futures)):
            raise ShardAbandonedError(str(cut))
        return [result_of(item, future, cut) for item, future in zip(routed, futures, strict=True)]

    def _all_submitted(
        self, claim: Claim, routed: list[Routed], charges: Charges
    ) -> list[GenerationFuture]:
        """The futures, in order. Suspects come last: while one runs, nothing else is prepared."""
        suspects = [i for i, item in enumerate(routed) if charges.is_suspect(item.prompt.index)]
        others = sorted({*range(len(routed))} - {*suspects})
        futures = {}
        with self._journal.preparing(claim):
            with self._quiet.preparing():
                for i in others:
                    futures[i] = self._submitted(claim, routed[i], charges)
            for i in suspects:  # tokenised before, and nobody died of that
                futures[i] = self._submitted(claim, routed[i], charges)
        return [futures[i] for i in range(len(routed))]

    def _submitted(self, claim: Claim, item: Routed, charges: Charges) -> GenerationFuture:
        """A prompt that may have killed its process runs alone, or not any more."""
        index = item.prompt.index
        if item.request is None:
            return submitted(self._engine, item)
        if (error := charges.error(index, self._max_alone)) is not None:
            return submitted(self._engine, replace(item, request=None, error=error))
        alone = charges.is_suspect(index)
        tag = PromptRef(claim.ref.job_id, index, alone)
        request = replace(item.request, alone=alone, tag=tag)
        return submitted(self._engine, replace(item, request=request))

    def _wait(
        self, claim: Claim, futures: Sequence[GenerationFuture], deadline: str | None
    ) -> PromptError:
        """Until all are done. Returns what is to be said of those that were cut short."""
        pending, cut = set(futures), DEADLINE
        until = time.monotonic() + self._shard_seconds
        while True:
            wait(pending, timeout=POLL_SECONDS)
            pending = {f for f in pending if not f.done()}  # `wait` holds a cancelled one for open
            if deadline and utc_now() > parse_time(deadline):
                for future in pending:
                    future.cancel()  # one that is running goes on to its end
                pending = {f for f in pending if not f.done()}
            if not pending:
                return cut
            if self._is_cancelled(claim):
                cut = CANCELLED
            elif time.monotonic() > until:
                limit = f"{self._shard_seconds:g} s (RAMOLE_SHARD_SECONDS)"
                cut = PromptError("shard_deadline", f"its shard was not done after {limit}")
            if cut is not DEADLINE:
                for future in pending:
                    future.end()
            if cut is not CANCELLED:  # its leases are gone; what is answered is kept
                self._check_still_wanted(claim)
            with suppress(RedisError):  # shown only
                failed = sum(map(has_failed, futures))
                self._ledger.report(claim.ref, len(futures) - len(pending) - failed, failed)

    def _check_still_wanted(self, claim: Claim) -> None:
        if self._leases.is_lost(claim):
            raise ShardAbandonedError("the lease ran out and another worker may have the shard")
        if self._draining.is_set():
            raise ShardAbandonedError("the worker is stopping", is_drain=True)

    def _is_cancelled(self, claim: Claim) -> bool:
        with suppress(RedisError):  # looked at again in a moment
            return self._ledger.is_cancelled(claim.ref.job_id)
        return False

    def _note(self, claim: Claim, error: str | None = None) -> None:
        """The attempt in the store, so that the bound and the reason survive an empty Redis."""
        note = {
            "attempt": claim.attempt,
            "worker": claim.token,
            "at": utc_now().isoformat(),
            "error": error,
        }
        self._store.put(_note_key(claim), to_json(note))

    def _given_up(self, job: JobFiles, claim: Claim) -> list[PromptResult]:
        """An error for every prompt, with the reason of the last attempt."""
        count = self._max_attempts
        reason = "its worker was lost each time"
        with suppress(NotFoundError):
            key = keys.attempt(job.job_id, claim.ref.shard, claim.attempt - 1)
            reason = json.loads(self._store.get(key)).get("error") or reason
        logger.error("shard given up after %d attempts: %s", count, reason)
        message = f"given up after {count} attempts (RAMOLE_MAX_ATTEMPTS): {reason}"
        prompts = self._to_give_up(job, claim)
        return [failure(prompt, PromptError("worker_lost", message)) for prompt in prompts]

    def _to_give_up(self, job: JobFiles, claim: Claim) -> list[PromptRequest]:
        manifest = job.find_manifest()
        if manifest is None:
            return []
        deaths = claim.count - self._max_attempts - 1  # of those that were to give it up
        if deaths < 1:
            with suppress(NotFoundError):
                return self._load(manifest, claim)
        with self._journal.preparing(claim), self._quiet.preparing():
            return stand_ins(self._store, manifest, claim.ref.shard, reads=deaths < 2)

    def _write(self, ref: ShardRef, results: list[PromptResult]) -> None:
        key = keys.output_shard(ref.job_id, ref.shard)
        try:
            created = self._store.create(key, _lines(results))
        except TooLargeError as e:
            errors = [r if r.error else _too_large(r, e) for r in results]
            created = self._store.create(key, _lines(errors))
        if not created:
            logger.info("another worker's output for this shard was first; ours is discarded")

    def _marked_done(self, ref: ShardRef) -> bool:
        """True when it was the last of its job."""
        num_ok, num_failed = JobFiles(self._store, ref.job_id).count(ref.shard)
        logger.info("shard done: %d answered, %d failed", num_ok, num_failed)
        return self._ledger.finish(ref, num_ok, num_failed)


def _note_key(claim: Claim) -> str:
    return keys.attempt(claim.ref.job_id, claim.ref.shard, claim.attempt)


def _lines(results: list[PromptResult]) -> bytes:
    return "".join(r.model_dump_json() + "\n" for r in results).encode()


def _too_large(result: PromptResult, error: TooLargeError) -> PromptResult:
    record = ErrorRecord(code="too_large", message=str(error))
    return PromptResult(index=result.index, id=result.id, error=record)
