"""The waiting prompts, in the order in which they may enter. No tensors, no clock.

First the overdue ones, oldest first, then by priority, then by arrival. A prompt becomes overdue

- when `max_overtaken` prompts behind it (later ones of its priority, or of a lower one) may have
  entered before it;
- as the oldest of all lower priorities, for every OUTRANKED_PER_TURN prompts of higher priority
  that came later and entered.

So higher priorities go first, yet leave lower ones that turn: nobody waits for ever.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable
from collections.abc import Sequence as Many
from concurrent.futures import Future
from itertools import count
from typing import Any, Final

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.sequence import Sequence

OUTRANKED_PER_TURN: Final = 32


class Waiting:
    """One prompt in the line, with what the choice looks at again and again."""

    def __init__(self, sequence: Sequence, number: int) -> None:
        self.sequence = sequence
        self.rank = -sequence.priority
        self.age = (sequence.arrived_at, number)  # the smaller, the older; no two are equal
        self.experts: frozenset[AdapterRef] = frozenset(sequence.adapters)
        self.num_tokens = sequence.num_tokens
        self.octaves = math.log2(self.num_tokens)
        self.overtaken = 0  # by so many prompts behind it
        self.overdue = False

    @property
    def place(self) -> tuple[int, tuple[float, int]]:
        """The order of those that are not overdue."""
        return self.rank, self.age


class Line:
    """See the module's docstring. Not thread-safe, but futures may be cancelled at any time.

    One `take` may add as many overtakers as prompts enter at once: `max_overtaken` less those is
    what makes a prompt overdue, so that the bound is kept.
    """

    def __init__(self, window: int, max_overtaken: int, max_entering: int) -> None:
        self.window = window
        self._patience = max_overtaken - min(window, max_entering)
        self._overdue: list[Waiting] = []  # oldest first
        self._others: list[Waiting] = []  # by place
        self._numbers = count()
        self._num_outranking = 0  # since the last turn of a lower priority
        self._any_cancelled = False  # set by whoever cancels, in any thread

    def __len__(self) -> int:
        return len(self._overdue) + len(self._others)

    def add(self, sequence: Sequence) -> None:
        """Behind those of the same or higher priority that arrived no later."""
        insort(self._others, Waiting(sequence, next(self._numbers)), key=lambda w: w.place)
        sequence.future.add_done_callback(self._look_for_cancelled)

    def front(self) -> list[Waiting]:
        """The first `window` of the line. Cancelled prompts leave it here."""
        if self._any_cancelled:
            self._any_cancelled = False
            self._overdue = [w for w in self._overdue if not has_left(w.sequence)]
            self._others = [w for w in self._others if not has_left(w.sequence)]
        overdue = self._overdue[: self.window]
        return overdue + self._others[: self.window - len(overdue)]

    def oldest_arrival(self) -> float:
        """The engine's time at which the oldest came. The line must not be empty."""
        return min(w.age for w in (*self._overdue, *self._others))[0]

    def take(self, chosen: Many[Waiting]) -> None:
        """They leave the line (they were at its front) and overtake whom they were behind."""
        if chosen:
            self._remove(chosen)
            self._overtake(sorted(w.place for w in chosen))
            self._outrank(chosen)

    def drain(self) -> list[Sequence]:
        """Takes everything out of the line."""
        waiting = [w.sequence for w in (*self._overdue, *self._others)]
        self._overdue, self._others = [], []
        return waiting

    def _remove(self, chosen: Iterable[Waiting]) -> None:
        gone = set(map(id, chosen))
        front = self._others[: self.window]
        self._overdue = [w for w in self._overdue if id(w) not in gone]
        self._others[: self.window] = [w for w in front if id(w) not in gone]

    def _overtake(self, places: Many[tuple[int, tuple[float, int]]]) -> None:
        """`places` in order: of those that entered."""
        end = bisect_right(self._others, places[-1], key=lambda w: w.place)
        before = self._others[:end]
        for waiting in before:
            waiting.overtaken += len(places) - bisect_right(places, waiting.place)
        late = [w for w in before if w.overtaken > self._patience]
        if late:
            self._others[:end] = [w for w in before if w.overtaken <= self._patience]
            self._make_overdue(late)

    def _outrank(self, chosen: Iterable[Waiting]) -> None:
        rank = min(w.rank for w in chosen)
        oldest = self._oldest_below(rank)
        if oldest is None:
            self._num_outranking = 0
            return
        self._num_outranking += sum(w.rank < oldest.rank and w.age > oldest.age for w in chosen)
        while oldest is not None and self._num_outranking >= OUTRANKED_PER_TURN:
            self._num_outranking -= OUTRANKED_PER_TURN
            self._others.remove(oldest)
            self._make_overdue([oldest])
            oldest = self._oldest_below(rank)

    def _oldest_below(self, rank: int) -> Waiting | None:
        """The oldest of those with a lower priority: one of the first of each."""
        heads: list[Waiting] = []
        while (start := bisect_right(self._others, rank, key=lambda w: w.rank)) < len(self._others):
            heads.append(self._others[start])
            rank = heads[-1].rank
        return min(heads, key=lambda w: w.age, default=None)

    def _make_overdue(self, late: Iterable[Waiting]) -> None:
        for waiting in late:
            waiting.overdue = True
            insort(self._overdue, waiting, key=lambda w: w.age)

    def _look_for_cancelled(self, future: "Future[Any]") -> None:
        if future.cancelled():  # never written back: other threads set it too
            self._any_cancelled = True


def has_left(s: Sequence) -> bool:
    """True when the prompt was cancelled; to be asked no more then. The second call tells whoever
    waits for its future: `concurrent.futures.wait` would otherwise never return."""
    return s.future.cancelled() and not s.future.set_running_or_notify_cancel()
