"""The encoder service: one thread embeds the texts of all shards, uploads and searches together.

Callers block on a Future; texts that arrive while a batch is embedded are joined into the next,
but for those of a shard that was begun before: they may have ended that process.
Texts that make the encoder fail, fail the call they came with (PromptError `encoder_failed`).
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import numpy as np

from ramole_core.errors import PromptError, UnavailableError
from ramole_core.retrieval.encoder import BATCH_SIZE, Encoder, Vectors
from worker.ledger import Claim
from worker.quiet import Quiet

MAX_TEXTS: Final = 256

OnBatch = Callable[[str, frozenset[Claim]], None]  # encoder version, whose texts; none: the end
_OWNER: ContextVar[Claim | None] = ContextVar("owner", default=None)


@contextmanager
def embedding_for(claim: Claim) -> Iterator[None]:
    """What this thread has embedded in the block is the shard's."""
    token = _OWNER.set(claim)
    try:
        yield
    finally:
        _OWNER.reset(token)


@dataclass(frozen=True)
class _Call:
    """Texts that somebody waits for, a shard or not."""

    texts: list[str]
    future: "Future[Vectors]"
    owner: Claim | None


class EncoderService:
    """Thread-safe `encode` over one Encoder. Nothing is embedded while a prompt runs alone;
    `on_batch` is told before a batch whose texts it has."""

    def __init__(
        self,
        encoder: Encoder,
        quiet: Quiet | None = None,
        on_batch: OnBatch = lambda version, claims: None,
    ) -> None:
        self._encoder = encoder
        self._quiet = quiet or Quiet()
        self._on_batch = on_batch
        self._queue: queue.Queue[_Call | None] = queue.Queue()
        self._lock = threading.Lock()  # nothing is queued behind the end
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self.idle = True  # for watchers, with the time of the last finished batch
        self.progress_at = time.monotonic()
        self.version = encoder.version
        self.width = encoder.width

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; calls still waiting fail."""
        with self._lock:
            self._stopped = True
            self._queue.put(None)
        self._thread.join()

    def encode(self, texts: list[str]) -> Vectors:
        """(N, D) unit vectors. Blocks. Raises PromptError when the encoder fails on them."""
        if not texts:
            return np.zeros((0, self.width), np.float32)
        future: Future[Vectors] = Future()
        with self._lock:
            if self._stopped:
                raise UnavailableError("the worker is stopping")
            self._queue.put(_Call(texts, future, _OWNER.get()))
        return future.result()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            calls = [first]
            while sum(len(call.texts) for call in calls) < MAX_TEXTS:
                try:
                    call = self._queue.get_nowait()
                except queue.Empty:
                    break
                if call is None:
                    self._queue.put(None)
                    break
                calls.append(call)
            self.progress_at, self.idle = time.monotonic(), False
            for part in _apart(calls):
                self._answer(part)
            self._on_batch(self.version, frozenset())
            self.idle = True
        self._fail_waiting()

    def _answer(self, calls: list[_Call]) -> None:
        owners = frozenset(call.owner for call in calls if call.owner is not None)
        self._on_batch(self.version, owners)
        try:
            vectors = self._encoded([text for call in calls for text in call.texts])
        except BaseException as e:  # whatever a model raises (a panic in Rust code is no Exception)
            if len(calls) > 1:
                for call in calls:
                    self._answer([call])
                return
            message = f"the encoder failed: {type(e).__name__}: {str(e)[:200]}"
            calls[0].future.set_exception(PromptError("encoder_failed", message))
            return
        start = 0
        for call in calls:
            call.future.set_result(vectors[start : start + len(call.texts)])
            start += len(call.texts)

    def _encoded(self, texts: list[str]) -> Vectors:
        """(N, D), batch by batch of similar lengths, so that progress shows."""
        vectors = np.zeros((len(texts), self.width), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            with self._quiet.preparing(self._show_life):
                vectors[rows] = self._encoder.encode([texts[i] for i in rows])
            self.progress_at = time.monotonic()
        return vectors

    def _show_life(self) -> None:
        """To wait for a prompt that runs alone is no standstill."""
        self.progress_at = time.monotonic()

    def _fail_waiting(self) -> None:
        while not self._queue.empty():
            call = self._queue.get_nowait()
            if call is not None:
                call.future.set_exception(UnavailableError("the worker is stopping"))


def _apart(calls: list[_Call]) -> list[list[_Call]]:
    """What is embedded together: shards begun before each on their own, after the rest."""
    rest: list[_Call] = []
    again: list[list[_Call]] = []
    for call in calls:
        if call.owner is not None and call.owner.attempt > 1:
            again.append([call])
        else:
            rest.append(call)
    return [rest, *again] if rest else again
