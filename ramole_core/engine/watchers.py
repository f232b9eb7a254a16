"""What the engine lets its watchers see: whose work is under way, and when nobody may disturb it.

Quiet begins before the prompt that wants it is shown, and ends after others are shown in its place:
what seems to run alone never has company. For the thread that steps.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from ramole_core.engine.sequence import Sequence


class Quiet(Protocol):
    """A lock: while it is held nothing happens that could be blamed on a prompt."""

    def acquire(self) -> bool:
        """Waits until it is quiet."""
        ...

    def release(self) -> None:
        """The others go on."""
        ...


class Watchers:
    """`on_running` is told the tags of those whose work is about to begin, whenever they change; it
    must not raise. `quiet` is held while a prompt runs that wants to be alone."""

    def __init__(self, on_running: Callable[[frozenset[Hashable]], None], quiet: Quiet) -> None:
        self._on_running = on_running
        self._quiet = quiet
        self._is_quiet = False  # held from here
        self._shown: frozenset[Hashable] = frozenset()

    def show(self, running: Iterable[Sequence]) -> None:
        """These run from now on. Waits for `quiet` where one of them wants it."""
        requests = [sequence.request for sequence in running]
        wants_quiet = any(request.alone for request in requests)
        if wants_quiet and not self._is_quiet:
            self._is_quiet = self._quiet.acquire()
        tags = frozenset(request.tag for request in requests) - {None}
        if tags != self._shown:
            self._shown = tags
            self._on_running(tags)
        if not wants_quiet:
            self.end_quiet()

    def end_quiet(self) -> None:
        """Nobody runs any more who wants it."""
        if self._is_quiet:
            self._is_quiet = False
            self._quiet.release()
