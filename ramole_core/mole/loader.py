"""Reads adapters beside the engine's thread: one after the other, in one thread of its own.

The thread lives while there is something to read. Guarantees: what `read` raises, whatever it is,
becomes the outcome of that adapter alone; no call waits for a load except `wait` and `close`. All
methods are for one thread, the caller's; only `read` runs in the loader's.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable

from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import RamoleError
from ramole_core.mole.resident import Resident

Outcome = Resident | Exception


class LoadInterruptedError(RamoleError):
    """Raised in place of what a load raised that is no Exception (SystemExit and the like)."""

    code = "adapter_unavailable"


class Loader:
    """See the module's docstring."""

    def __init__(
        self, read: Callable[[AdapterRef], Resident], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._changed = threading.Condition()  # guards all below
        self._queue: deque[AdapterRef] = deque()  # not begun
        self._outcomes: list[tuple[AdapterRef, Outcome]] = []
        self._thread: threading.Thread | None = None  # None: nothing is being read
        self._began_at: float | None = None  # the load that is under way

    def submit(self, refs: Iterable[AdapterRef]) -> None:
        """Puts them behind what is queued."""
        with self._changed:
            self._queue.extend(refs)
            if self._queue and self._thread is None:
                self._start()

    def withdraw(self) -> list[AdapterRef]:
        """Takes back, and returns, what has not been begun."""
        with self._changed:
            refs = list(self._queue)
            self._queue.clear()
        return refs

    def take(self) -> list[tuple[AdapterRef, Outcome]]:
        """The loads that have ended; each is handed out once."""
        with self._changed:
            outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def wait(self, seconds: float | None) -> bool:
        """Until a load has ended that was not taken: True. False when the time is up, or when
        nothing is loading. No `seconds`: no limit."""
        with self._changed:
            self._changed.wait_for(lambda: self._outcomes or self._thread is None, seconds)
            return bool(self._outcomes)

    def loading_seconds(self) -> float:
        """How long the load that is under way has taken so far; 0 without one."""
        with self._changed:
            return 0.0 if self._began_at is None else self._clock() - self._began_at

    def close(self, seconds: float) -> None:
        """Takes back what has not been begun and waits for the rest, at most so long."""
        self.withdraw()
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None, seconds)

    def _start(self) -> None:
        """The lock is held: the thread waits for it. Without a thread the loads fail."""
        thread = threading.Thread(target=self._run, name="ramole-loader", daemon=True)
        try:
            thread.start()
        except RuntimeError as e:  # no more threads
            self._outcomes += [(ref, e) for ref in self._queue]
            self._queue.clear()
        else:
            self._thread = thread

    def _run(self) -> None:
        while (ref := self._next()) is not None:
            self._load(ref)

    def _next(self) -> AdapterRef | None:
        with self._changed:
            if self._queue:
                self._began_at = self._clock()
                return self._queue.popleft()
            self._thread = self._began_at = None
            self._changed.notify()
            return None

    def _load(self, ref: AdapterRef) -> None:
        try:
            self._end(ref, self._read(ref))
        except BaseException as e:
            # Its frames hold the weights. They end here: not where the failure is looked at.
            traceback.clear_frames(e.__traceback__)
            self._end(ref, _as_exception(e))

    def _end(self, ref: AdapterRef, outcome: Outcome) -> None:
        with self._changed:
            self._outcomes.append((ref, outcome))
            self._changed.notify()


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = LoadInterruptedError(f"reading it ended with {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
