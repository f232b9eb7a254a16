"""How far a training run is, on stderr: one line that is rewritten on a terminal, else a line now
and then.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

PAUSE_SECONDS: Final = 10.0  # between two lines that stay


class Progress:
    """Says what happens. One training loop at a time."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._rewrites = stream.isatty()
        self._open = False  # a line without its end
        self._began = self._said = now()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The steps run inside; the clock of what is left starts here."""
        self._began = self._said = self._now()
        try:
            yield
        finally:
            self._end()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._end()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def step(self, step: int, steps: int, text: str) -> None:
        """After `step` of `steps`; `text` is what was measured."""
        now = self._now()
        left = (now - self._began) / step * (steps - step) / 60
        line = f"step {step}/{steps}, {text}, {left:.1f} minutes left"
        if self._rewrites:
            self._stream.write(f"\r{line}\x1b[K")
            self._stream.flush()
            self._open = True
        elif now - self._said >= PAUSE_SECONDS or step == steps:
            self._said = now
            self.say(line)

    def _end(self) -> None:
        """Ends the line that is being rewritten."""
        if self._open:
            self._open = False
            self._stream.write("\n")
