"""A progress line on a terminal; nothing at all anywhere else."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TextIO

from producer.job_status import JobStatus
from producer.prune import Pruned

BAR_CHARS: Final = 30
PAUSE_SECONDS: Final = 0.1


class OneLine:
    """Rewrites one line of `stream`; a context manager that ends the line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty()
        self._written = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._written:
            self._stream.write("\n")

    def write(self, text: str) -> None:
        """Puts `text` in the place of what stands there."""
        if self._shown:
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()
            self._written = True


class ProgressLine(OneLine):
    """How far a job is and how fast it goes, at every status."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._now = now
        self._first: tuple[float, int] | None = None

    def show(self, status: JobStatus) -> None:
        """Shows one status."""
        self._first = self._first or (self._now(), status.num_done)
        self.write(self._line(status))

    def _line(self, status: JobStatus) -> str:
        share = status.num_done / max(status.num_prompts, 1)
        bar = ("#" * round(share * BAR_CHARS)).ljust(BAR_CHARS, ".")
        failed = f", {status.num_failed} failed" if status.num_failed else ""
        counts = f"{status.num_done}/{status.num_prompts}{failed}"
        return f"[{bar}] {counts}  {status.state.value}{self._speed(status)}"

    def _speed(self, status: JobStatus) -> str:
        began, num_done = self._first or (self._now(), 0)
        seconds = self._now() - began
        rate = (status.num_done - num_done) / seconds if seconds > 0.5 else 0.0
        if rate <= 0 or status.state.ended:
            return ""
        left = (status.num_prompts - status.num_done) / rate
        return f"  {rate:.1f} prompts/s, {left:.0f} s left"


class PruneLine(OneLine):
    """How much of a removal is done."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._now = now
        self._last = float("-inf")

    def show(self, pruned: Pruned) -> None:
        """Shows the totals so far, ten times a second at most."""
        if self._now() - self._last >= PAUSE_SECONDS:
            self._last = self._now()
            self.write(f"{pruned.num_jobs} jobs, {pruned.num_objects} objects")
