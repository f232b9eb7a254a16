"""One shard, from its claim to its acknowledgement.

load -> retrieve -> generate -> store -> mark done. Cut anywhere, another worker begins again: the
output is created once, and what is marked done is read back from it. A shard begun too often has
its prompts failed, so that every job ends.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Final

from ramole_core import keys
from ramole_core.adapters.registry import Registry
from ramole_core.engine.engine import Engine
from ramole_core.engine.request import Generation, GenerationRequest
from ramole_core.errors import ConflictError, PromptError, RamoleError, UnavailableError
from ramole_core.jobs import (
    AdapterUse,
    ErrorRecord,
    Manifest,
    PromptRequest,
    PromptResult,
    Usage,
    parse_time,
    utc_now,
)
from ramole_core.retrieval.retriever import Retriever
from ramole_core.store import ObjectStore
from ramole_core.store.base import to_json
from worker.leases import LeaseKeeper
from worker.ledger import Claim, Ledger, ShardRef
from worker.routing import Routed, route

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5


class ShardAbandonedError(RamoleError):
    """Raised when a shard is to be let go: drain, a lost lease, a cancelled job."""

    code = "abandoned"


class ShardRunner:
    """Runs claimed shards; one instance serves all task threads."""

    def __init__(
        self,
        store: ObjectStore,
        ledger: Ledger,
        leases: LeaseKeeper,
        registry: Registry,
        retriever: Retriever,
        engine: Engine,
        draining: threading.Event,
        on_done: Callable[[ShardRef, bool], None],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._leases = leases
        self._registry = registry
        self._retriever = retriever
        self._engine = engine
        self._draining = draining
        self._on_done = on_done

    def run(self, claim: Claim) -> None:
        """Works on a claimed shard to its end.

        Raises ShardAbandonedError when it was let go (its attempt is given back on a drain).
        """
        ref = claim.ref
        with self._leases.holding(claim):
            try:
                if not self._store.exists(keys.output_shard(ref.job_id, ref.shard)):
                    self._write(ref, self._answers(claim))
                self._mark_done(ref)
            except UnavailableError:
                self._ledger.release(claim)  # an outage is nobody's attempt; it is sent again
                raise

    def _answers(self, claim: Claim) -> list[PromptResult]:
        manifest, prompts = self._load(claim)
        if claim.exhausted:
            return self._given_up(prompts, claim)
        return self._generate(claim, self._route(manifest, prompts), manifest)

    def _load(self, claim: Claim) -> tuple[Manifest, list[PromptRequest]]:
        job_id, shard = claim.ref.job_id, claim.ref.shard
        manifest = load_manifest(self._store, job_id)
        note = {"attempt": claim.attempt, "worker": claim.token, "at": utc_now().isoformat()}
        self._store.put(keys.attempt(job_id, shard, claim.attempt), to_json(note))
        lines = self._store.get(keys.input_shard(job_id, manifest.submission, shard))
        prompts = [PromptRequest.model_validate_json(line) for line in lines.splitlines()]
        return manifest, prompts

    def _route(self, manifest: Manifest, prompts: list[PromptRequest]) -> list[Routed]:
        if manifest.pins.registry > self._registry.position:
            self._registry.refresh()
        return route(prompts, manifest, self._retriever, self._registry)

    def _generate(
        self, claim: Claim, routed: list[Routed], manifest: Manifest
    ) -> list[PromptResult]:
        futures = [_submitted(self._engine, item) for item in routed]
        try:
            self._wait(claim, futures, manifest)
        except ShardAbandonedError:
            for future in futures:
                future.cancel()
            raise
        return [_result(item, future) for item, future in zip(routed, futures, strict=True)]

    def _wait(
        self, claim: Claim, futures: Sequence["Future[Generation]"], manifest: Manifest
    ) -> None:
        deadline = manifest.options.deadline
        pending = set(futures)
        while pending:
            wait(pending, timeout=POLL_SECONDS)
            pending = {f for f in pending if not f.done()}  # `wait` holds a cancelled one for open
            self._check_still_wanted(claim)
            if deadline and utc_now() > parse_time(deadline):
                for future in pending:
                    future.cancel()  # one that is running goes on to its end
                pending = {f for f in pending if not f.done()}
            failed = sum(f.done() and _failed(f) for f in futures)
            self._ledger.report(claim.ref, len(futures) - len(pending), failed)

    def _check_still_wanted(self, claim: Claim) -> None:
        if self._draining.is_set():
            self._store.delete(keys.attempt(claim.ref.job_id, claim.ref.shard, claim.attempt))
            self._ledger.release(claim)
            raise ShardAbandonedError("the worker is stopping")
        if self._leases.is_lost(claim):
            raise ShardAbandonedError("the lease ran out and another worker may have the shard")
        if self._ledger.is_cancelled(claim.ref.job_id):
            raise ShardAbandonedError("the job was cancelled")

    def _given_up(self, prompts: list[PromptRequest], claim: Claim) -> list[PromptResult]:
        logger.error("shard given up after %d attempts", claim.attempt - 1)
        error = PromptError(
            "worker_lost",
            f"given up after {claim.attempt - 1} attempts: each time the worker was lost "
            "(RAMOLE_MAX_ATTEMPTS)",
        )
        return [
            _failure(p, PromptError(p.error.code, p.error.message) if p.error else error)
            for p in prompts
        ]

    def _write(self, ref: ShardRef, results: list[PromptResult]) -> None:
        lines = "".join(r.model_dump_json() + "\n" for r in results)
        if not self._store.create(keys.output_shard(ref.job_id, ref.shard), lines.encode()):
            logger.info("another worker's output for this shard was first; ours is discarded")

    def _mark_done(self, ref: ShardRef) -> None:
        num_ok, num_failed = count_results(self._store, ref.job_id, ref.shard)
        logger.info("shard done: %d answered, %d failed", num_ok, num_failed)
        self._on_done(ref, self._ledger.finish(ref, num_ok, num_failed))


def load_manifest(store: ObjectStore, job_id: str) -> Manifest:
    """The job's manifest. Raises NotFoundError; ConflictError when it cannot be read."""
    data = store.get(keys.manifest(job_id))
    try:
        return Manifest.model_validate_json(data)
    except ValueError as e:
        raise ConflictError(f"{keys.manifest(job_id)} is not a manifest: {e}") from e


def count_results(store: ObjectStore, job_id: str, shard: str) -> tuple[int, int]:
    """(answered, failed) of a finished shard. Raises NotFoundError."""
    lines = store.get(keys.output_shard(job_id, shard)).splitlines()
    failed = sum(PromptResult.model_validate_json(line).error is not None for line in lines)
    return len(lines) - failed, failed


def _submitted(engine: Engine, item: Routed) -> "Future[Generation]":
    future: Future[Generation] = Future()
    if item.request is None:
        future.set_exception(item.error or PromptError("no_request", "nothing to run"))
        return future
    try:
        return engine.submit(item.request)
    except RamoleError as e:
        future.set_exception(e)
        return future


def _failed(future: "Future[Generation]") -> bool:
    return future.cancelled() or future.exception() is not None


def _result(item: Routed, future: "Future[Generation]") -> PromptResult:
    if future.cancelled():
        return _failure(item.prompt, PromptError("deadline", "the job's deadline passed"))
    error = future.exception()
    if isinstance(error, RamoleError):
        return _failure(item.prompt, error)
    if error is not None:
        message = f"{type(error).__name__}: {str(error)[:300]}"
        return _failure(item.prompt, PromptError("engine_error", message))
    assert item.request is not None
    return _answer(item.prompt, item.request, future.result())


def _answer(prompt: PromptRequest, request: GenerationRequest, answer: Generation) -> PromptResult:
    uses = tuple(
        AdapterUse(
            name=expert.ref.name,
            version=expert.ref.version,
            similarity=None if expert.similarity is None else round(expert.similarity, 6),
            weight=round(weight, 6),
        )
        for expert, weight in zip(request.experts, answer.weights, strict=True)
    )
    return PromptResult(
        index=prompt.index,
        id=prompt.id,
        text=answer.text,
        finish_reason=answer.finish_reason,
        adapters=uses,
        usage=Usage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens),
    )


def _failure(prompt: PromptRequest, error: RamoleError) -> PromptResult:
    return PromptResult(
        index=prompt.index,
        id=prompt.id,
        error=ErrorRecord(code=error.code, message=str(error)),
    )
