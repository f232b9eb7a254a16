"""Waiting for something that another process brings about: poll, quickly at first, then slower."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

FIRST_SECONDS: Final = 0.02
LAST_SECONDS: Final = 0.5
GROWTH: Final = 1.5


class Clock:
    """The time and how to pass it; tests bring their own."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Passes `seconds`."""
        time.sleep(seconds)


def poll(
    look: Callable[[], T | None], timeout_seconds: float | None, clock: Clock | None = None
) -> T | None:
    """The first result of `look` that is not None, or None once the time is over.

    `look` runs at least once, and once more when the time is over.
    """
    clock = clock or Clock()
    deadline = None if timeout_seconds is None else clock.now() + timeout_seconds
    pause = FIRST_SECONDS
    while True:
        found = look()
        left = None if deadline is None else deadline - clock.now()
        if found is not None or (left is not None and left <= 0):
            return found
        clock.sleep(pause if left is None else min(pause, left))
        pause = min(pause * GROWTH, LAST_SECONDS)
