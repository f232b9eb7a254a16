"""SIGINT and SIGTERM during a training run: both end it, until its result is being stored."""

import signal
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Raised in the main thread when a signal comes. No RamoleError: nothing may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.exit_code = 128 + signum


class Interrupts:
    """Takes the two signals over from `install` on."""

    def install(self) -> None:
        """From here on the first signal raises Interrupted."""
        for signum in SIGNALS:
            signal.signal(signum, self._on_signal)

    def ignore(self) -> None:
        """What follows takes a moment and must not be cut: signals are dropped until the end."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self.ignore()  # Ctrl-C comes twice: from the terminal and from the command
        raise Interrupted(signum)
