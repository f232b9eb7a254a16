"""Which waiting prompts enter the free slots of the running batch. Policy only: no tensors, no
clock of its own.

Limits of what runs together: `batch_size` prompts; the cache's rectangle, as many rows as prompts,
each as long as the longest can become, holds `max_batch_tokens` (less for a while after running out
of memory); `bank_size` adapters. A prompt alone is always within them: the engine sees to it.

When: with nothing running, once `batch_size` prompts wait or the oldest has waited for
`interval_seconds`. Otherwise as soon as a slot is free, or, with a `refill_share`, once that share
of the slots is free (or enough for all that wait): few large prefills instead of many small ones.
High priorities and overdue prompts do not wait for that, and nobody does for more than REFILL_STEPS
steps; but with a share of 1 batches are static, and one ends before the next begins.

Prompts that want to be alone have a line of their own, first come, first served. While one waits
nobody joins those that run; it enters once they have ended and its adapters are ready. Then the
others have a turn, one batch, before the next that wants to be alone.

Who, among the first `window` of the line whose adapters are ready: the highest priority that fits;
then whoever needs the fewest experts that are not active yet (a small mixture is a cheap one, and
families of prompts end up together); then the length nearest to the longest (little of the
rectangle lies idle); then the oldest. On simulated streams (benchmarks/scheduling.py) cleverer
choices by how many prompts wait for an expert were no better: some streams gained by what others
lost.

Age is bounded. At most MAX_OVERTAKEN_WINDOWS windows of prompts behind it in the line enter before
a prompt; what is overdue (engine/line.py says when) goes first, and when it does not fit, nothing
enters until it does. An overdue prompt whose adapters are not ready lets others pass, but room in
the bank is kept for it, so that they can be loaded: on top of the bound comes the time that takes.
"""

import functools
import math
from collections.abc import Callable, Collection
from collections.abc import Sequence as Many
from typing import Final

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.line import Line, Waiting, has_left
from ramole_core.engine.sequence import Sequence

MAX_OVERTAKEN_WINDOWS: Final = 2
REFILL_STEPS: Final = 32


def rectangle(sequences: Collection[Sequence]) -> int:
    """Tokens of cache that these need together: every row as long as the longest can become."""
    return len(sequences) * max((s.num_tokens for s in sequences), default=0)


class Scheduler:
    """The waiting prompts. Not thread-safe: the engine holds its lock around every call.
    `token_limit`: what the rectangle may hold now."""

    def __init__(
        self,
        batch_size: int,
        max_batch_tokens: int,
        bank_size: int,
        interval_seconds: float,
        window: int = 128,
        refill_share: float = 0.0,
    ) -> None:
        self.batch_size = batch_size
        self.max_batch_tokens = max_batch_tokens
        self.bank_size = bank_size
        self.interval_seconds = interval_seconds
        self._alone: list[Sequence] = []  # in their order
        self._is_lines_turn = False
        self._num_refill = max(1, math.ceil(refill_share * batch_size))
        self._line = Line(window, MAX_OVERTAKEN_WINDOWS * window, batch_size)
        self.token_limit = max_batch_tokens  # lower for a while after running out of memory
        self._num_fitted = 0  # prompts that ended since the limit changed
        self._num_declined = 0  # steps with free slots since somebody might enter

    def __len__(self) -> int:
        return len(self._alone) + len(self._line)

    def add(self, sequence: Sequence) -> None:
        """Puts a prompt into the line, behind those of the same or higher priority that arrived
        no later; one that wants to be alone behind all others that do."""
        if sequence.request.alone:
            self._alone.append(sequence)
        else:
            self._line.add(sequence)

    def wait_seconds(self, now: float) -> float | None:
        """How long until somebody is due when nothing runs: 0 when it is so, None when nobody
        waits."""
        if self._alone or self._is_due(now):
            return 0.0
        if not self._line:
            return None
        return self._line.oldest_arrival() + self.interval_seconds - now

    def window(self) -> list[Sequence]:
        """Whose adapters to load: the next that wants to be alone, then the first of the line in
        its order. Cancelled prompts leave here and in `admit`."""
        return [*self._waiting_alone()[:1], *(w.sequence for w in self._line.front())]

    def admit(
        self,
        now: float,
        running: Many[Sequence],
        ready: Callable[[AdapterRef], bool] = lambda ref: True,
    ) -> list[Sequence]:
        """Takes those that enter out of the line; empty when nobody may or should. Without an
        adapter that is `ready` it waits for a load: then nothing may enter although it is due."""
        waiting = self._waiting_alone()[:1]
        if running and (waiting or running[0].request.alone):
            return []
        is_ready = bool(waiting) and all(map(ready, waiting[0].adapters))
        chosen = [] if is_ready and not self._is_lines_turn else self._batch(now, running, ready)
        if is_ready and not chosen:
            chosen = [self._alone.pop(0)]
        if chosen:
            self._is_lines_turn = chosen[0].request.alone
        return chosen

    def drain(self) -> list[Sequence]:
        """Takes everybody out."""
        waiting, self._alone = self._alone, []
        return [*waiting, *self._line.drain()]

    def ran_out_of_memory(self, sequences: Collection[Sequence]) -> None:
        """The rectangle gets half as big as the one that did not fit, until others did."""
        self.token_limit = max(1, rectangle(sequences) // 2)
        self._num_fitted = 0

    def finished(self) -> bool:
        """A prompt has left the batch. When `batch_size` did, the limit goes back up by an
        eighth: True."""
        self._num_fitted += 1
        if self._num_fitted < self.batch_size:
            return False
        self._num_fitted = 0
        self.token_limit = min(self.max_batch_tokens, self.token_limit * 9 // 8 + 1)
        return True

    def _waiting_alone(self) -> list[Sequence]:
        self._alone = [s for s in self._alone if not has_left(s)]
        return self._alone

    def _batch(
        self, now: float, running: Many[Sequence], ready: Callable[[AdapterRef], bool]
    ) -> list[Sequence]:
        """Those of the line that enter."""
        front, num_free = self._line.front(), self.batch_size - len(running)
        if not (front and num_free):
            return []
        self._num_declined += bool(running)
        if not (self._is_refill(front[0], num_free) if running else self._is_due(now)):
            return []
        batch = _Batch(running, self.batch_size, self.token_limit, self.bank_size)
        _fill(batch, front, functools.cache(ready))
        self._line.take(batch.chosen)
        self._num_declined = 0
        return [w.sequence for w in batch.chosen]

    def _is_due(self, now: float) -> bool:
        """A batch out of the line, when nothing runs."""
        if not self._line or len(self._line) >= self.batch_size:
            return bool(self._line)
        return self._line.oldest_arrival() + self.interval_seconds <= now

    def _is_refill(self, first: Waiting, num_free: int) -> bool:
        if num_free >= min(len(self._line), self._num_refill):
            return True
        is_urgent = first.overdue or first.sequence.priority > 0
        is_static = self._num_refill == self.batch_size
        return not is_static and (is_urgent or self._num_declined > REFILL_STEPS)


class _Batch:
    """What runs and who is to join it: the latter never beyond the limits."""

    def __init__(
        self, running: Many[Sequence], max_prompts: int, max_tokens: int, max_experts: int
    ) -> None:
        self.chosen: list[Waiting] = []
        self._max_prompts = max_prompts
        self._max_tokens = max_tokens
        self._max_experts = max_experts
        self._num_prompts = len(running)
        self._longest = max((s.num_tokens for s in running), default=0)
        self._octaves = math.log2(self._longest) if self._longest else None
        self._experts = {ref for s in running for ref in s.adapters}
        self._kept: frozenset[AdapterRef] = frozenset()  # room for these adapters stays free

    def fits(self, waiting: Waiting) -> bool:
        num_prompts = self._num_prompts + 1
        tokens = num_prompts * max(self._longest, waiting.num_tokens)
        held = self._experts | self._kept if self._kept else self._experts
        return (
            num_prompts <= self._max_prompts
            and (tokens <= self._max_tokens or num_prompts == 1)
            and len(held) + len(waiting.experts - held) <= self._max_experts
        )

    def enter(self, waiting: Waiting) -> None:
        self.chosen.append(waiting)
        self._num_prompts += 1
        self._longest = max(self._longest, waiting.num_tokens)
        self._octaves = math.log2(self._longest)
        self._experts |= waiting.experts

    def keep_room(self, waiting: Waiting) -> None:
        """For the first that asks only: room for all of them might leave none for others."""
        self._kept = self._kept or waiting.experts

    def cost(self, waiting: Waiting) -> tuple[int, int, int]:
        """The lower, the better: priority, experts to add, distance in half octaves of length."""
        distance = 0.0 if self._octaves is None else 2 * (waiting.octaves - self._octaves)
        return waiting.rank, len(waiting.experts - self._experts), abs(round(distance))


def _fill(batch: _Batch, front: Many[Waiting], ready: Callable[[AdapterRef], bool]) -> None:
    """Lets those of the line's front enter that should."""
    here = [w for w in front if all(map(ready, w.experts))]
    for waiting in front:
        if not waiting.overdue:  # they stand first
            break
        if waiting not in here:
            batch.keep_room(waiting)
        elif batch.fits(waiting):
            batch.enter(waiting)
        else:
            return
    candidates = [w for w in here if not w.overdue]
    while candidates:
        best = min(candidates, key=batch.cost)  # the first of equals: the oldest
        if batch.fits(best):
            batch.enter(best)
            candidates.remove(best)
        else:
            candidates = [w for w in candidates if batch.fits(w)]
