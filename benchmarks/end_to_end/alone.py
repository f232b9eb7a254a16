"""The engine side: encoder, index and engine in one process; no Redis, no store, no Celery.

It has a process of its own, so that neither side carries what the other imports. It answers one
list of prompts at a time and computes nothing in between.
"""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from benchmarks.end_to_end.pools import Pool, samples
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.factory import build_engine
from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.jobs import JobOptions
from ramole_core.mole.router import RouterWeights
from ramole_core.retrieval.encoder import Encoder, adapter_vector
from ramole_core.retrieval.index import AdapterIndex, Match
from ramole_core.settings import Settings

JOIN_SECONDS: Final = 60.0


@dataclass(frozen=True)
class AloneRound:
    """The answers, and when the last prompt had its adapters and the last answer was there, in
    seconds from the start. `cpu_seconds`: of all threads of the process."""

    texts: list[str]
    retrieved: float
    seconds: float
    cpu_seconds: float


class Alone:
    """Encoder, index and engine, loaded. `settings` are a worker's, `options` those of a job."""

    def __init__(self, pool: Pool, settings: Settings, options: JobOptions) -> None:
        self.engine = build_engine(settings, pool, NoRouters())
        self._encoder = Encoder.load(settings.encoder, settings.encoder_prefix)
        self._index = AdapterIndex(self._encoder.width)
        self._refs = frozenset(AdapterRef(name, 1) for name in pool.adapters)
        self._options = options
        for ref in sorted(self._refs):
            self._index.add(ref, adapter_vector(self._encoder.encode(samples(ref.name))))
        self.engine.start()

    def run(self, prompts: list[str]) -> AloneRound:
        """Answers all prompts. As in a worker, the engine begins with the first `shard_size` of
        them while the next are embedded."""
        began, cpu = time.perf_counter(), time.process_time()
        futures = []
        for start in range(0, len(prompts), self._options.shard_size):
            part = prompts[start : start + self._options.shard_size]
            found = self._index.search(self._encoder.encode(part), self._options.k, self._refs)
            requests = map(self._request, part, found)
            futures += [self.engine.submit(request) for request in requests]
        retrieved = time.perf_counter() - began
        texts = [future.result().text for future in futures]
        return AloneRound(texts, retrieved, time.perf_counter() - began, time.process_time() - cpu)

    def _request(self, prompt: str, matches: list[Match]) -> GenerationRequest:
        return GenerationRequest(
            prompt=prompt,
            experts=tuple(Expert(m.ref, similarity=m.similarity) for m in matches),
            gate=self._options.gate,
            tau=self._encoder.tau,
            max_new_tokens=self._options.max_new_tokens,
        )


class NoRouters:
    """A RouterSource: no job of the benchmark names a router."""

    def load_router(self, version: str) -> RouterWeights:
        """See RouterSource."""
        raise KeyError(version)


class AloneProcess:
    """The other end of the process."""

    def __init__(self, connection: "Connection[list[str], AloneRound]") -> None:
        self._connection = connection

    def run(self, prompts: list[str]) -> AloneRound:
        """As Alone.run, there."""
        self._connection.send(prompts)
        return self._connection.recv()


@contextmanager
def alone_process(pool: Pool, settings: Settings, options: JobOptions) -> Iterator[AloneProcess]:
    """Starts the process; it ends with the block."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(theirs, pool, settings, options), daemon=True)
    process.start()
    theirs.close()
    try:
        yield AloneProcess(ours)
    finally:
        ours.close()
        process.join(JOIN_SECONDS)


def _serve(
    connection: "Connection[AloneRound, list[str]]",
    pool: Pool,
    settings: Settings,
    options: JobOptions,
) -> None:
    alone = Alone(pool, settings, options)
    try:
        while True:
            connection.send(alone.run(connection.recv()))
    except EOFError:
        alone.engine.stop()
