"""One supervised process: started with its own log and process group, restarted when it dies.

The kernel ends it when the supervisor dies in whatever way (PR_SET_PDEATHSIG, Linux).
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

FIRST_BACKOFF_SECONDS: Final = 0.5
LAST_BACKOFF_SECONDS: Final = 10.0
HEALTHY_SECONDS: Final = 30.0
MAX_LOG_BYTES: Final = 64 << 20
_PR_SET_PDEATHSIG: Final = 1


class Child:
    """A process and its restarts. `orphan_signal` is what the kernel sends when we die."""

    def __init__(
        self,
        name: str,
        argv: list[str],
        env: Mapping[str, str],
        log: Path,
        orphan_signal: signal.Signals = signal.SIGKILL,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.log = log
        self.num_restarts = 0
        self._argv = argv
        self._env = dict(env)
        self._orphan_signal = orphan_signal
        self._now = now
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._backoff = FIRST_BACKOFF_SECONDS
        self._restart_at: float | None = None

    @property
    def pid(self) -> int | None:
        """The running process' id."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the last process ended; None while it runs."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Starts the process, its output appended to the log."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _rotate(self.log)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=tie_to_parent(self._orphan_signal),
            )
        self._started = self._now()
        self._restart_at = None

    def keep_up(self) -> None:
        """Restarts a process that ended, after a pause that doubles until it stays healthy."""
        if self.running:
            return
        now = self._now()
        if self._restart_at is None:
            if now - self._started >= HEALTHY_SECONDS:
                self._backoff = FIRST_BACKOFF_SECONDS
            self._restart_at = now + self._backoff
            self._backoff = min(self._backoff * 2, LAST_BACKOFF_SECONDS)
        if now >= self._restart_at:
            self.start()
            self.num_restarts += 1

    def signal(self, signum: signal.Signals) -> None:
        """Sends a signal to the process, if it lives."""
        if self._process is not None:
            self._process.send_signal(signum)

    def kill(self) -> None:
        """Ends the process and what it started, at once."""
        if self.running and self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """True when the process has ended within `seconds`."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log that are not blank."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return list(deque((line.rstrip() for line in file if line.strip()), maxlen=count))
    except FileNotFoundError:
        return []


def tie_to_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """What the child runs before its program: ask for `signum` when its parent dies."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # found before the fork: between fork and exec little is safe
    parent = os.getpid()

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return tie


def _rotate(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
