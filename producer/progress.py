"""A progress line on a terminal; nothing at all anywhere else."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, TextIO

from producer.job_status import JobStatus

BAR_CHARS: Final = 30


class ProgressLine:
    """Rewrites one line of `stream` at every status; a context manager that ends the line."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._shown = stream.isatty()
        self._written = False
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._written:
            self._stream.write("\n")

    def show(self, status: JobStatus) -> None:
        """Shows how far the job is and how fast it goes."""
        if not self._shown:
            return
        self._first = self._first or (self._now(), status.num_done)
        self._stream.write(f"\r{self._line(status)}\x1b[K")
        self._stream.flush()
        self._written = True

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
