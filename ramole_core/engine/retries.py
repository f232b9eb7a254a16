"""What becomes of a batch that broke: it runs again in halves, until the guilty prompt is alone.

A prompt is charged only when it failed by itself twice: the first time something that has passed
by then may have been to blame, or memory that is free by then. Not thread-safe.
"""

from collections import deque
from collections.abc import Sequence as Many

from ramole_core.engine.sequence import Sequence


class Retries:
    """The parts of broken batches, in the order in which they run again."""

    def __init__(self) -> None:
        self._batches: deque[list[Sequence]] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def next_batch(self) -> list[Sequence]:
        """Takes the next part; empty when nothing is to be run again."""
        return self._batches.popleft() if self._batches else []

    def add(self, broken: Many[Sequence]) -> list[Sequence]:
        """Queues the prompts of a batch that broke; returns those to charge instead."""
        half = len(broken) // 2
        if half:
            self._batches.extendleft([list(broken[half:]), list(broken[:half])])
            return []
        guilty = [s for s in broken if s.failed_alone]
        if broken and not guilty:
            broken[0].failed_alone = True
            self._batches.appendleft(list(broken))
        return guilty

    def drain(self) -> list[Sequence]:
        """Takes everything that waits."""
        waiting = [s for batch in self._batches for s in batch]
        self._batches.clear()
        return waiting
