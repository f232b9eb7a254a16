"""The owner lock of a data folder: one supervisor at a time, and who it is.

The lock is the kernel's (flock), so it is free as soon as its holder is gone, however it went.
The file's text only describes the holder and means nothing once the lock is free.
"""

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from producer.polling import poll
from ramole_core.errors import ConfigError, ConflictError
from ramole_core.jobs import Wire

DESCRIBE_SECONDS: Final = 2.0

Phase = Literal["starting", "ready", "stopping", "failed"]


class Holder(Wire):
    """The supervisor that holds a data folder. `message` says why, when `phase` is failed."""

    pid: int
    phase: Phase
    broker: str = ""
    broker_pid: int | None = None
    worker_pids: list[int] = []
    message: str = ""


class OwnerLock:
    """The lock file `<home>/supervisor.lock`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._path = home / "supervisor.lock"
        self._handle = -1

    def acquire(self) -> None:
        """Takes the lock. Raises ConflictError naming the process that holds it, ConfigError."""
        with _usable(self._home):
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(handle):
            os.close(handle)
            holder = self._read()
            who = f"process {holder.pid}" if holder else "another process"
            raise ConflictError(
                f"the data folder {self._home} is already served by {who} (ramole up); "
                f"stop it with `{down_command(self._home)}`, or choose another with --home"
            )
        self._handle = handle

    def describe(self, holder: Holder) -> None:
        """Writes who holds the lock and how far it is. Raises ConfigError."""
        data = holder.model_dump_json().encode()
        with _usable(self._home):
            os.pwrite(self._handle, data, 0)
            os.ftruncate(self._handle, len(data))

    def release(self) -> None:
        """Gives the lock back."""
        os.close(self._handle)
        self._handle = -1

    def holder(self) -> Holder | None:
        """Who holds the lock now; None when it is free, or its holder has yet to say who it is."""
        return self._read() if self.held() else None

    def await_holder(self) -> Holder | None:
        """As `holder`, but gives a fresh holder a moment to describe itself."""
        return poll(self.holder, DESCRIBE_SECONDS) if self.held() else None

    def held(self) -> bool:
        """True while some process holds the lock. Raises ConfigError."""
        with _usable(self._home):
            try:
                handle = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
        try:
            return not _try_lock(handle)
        finally:
            os.close(handle)

    def _read(self) -> Holder | None:
        with suppress(OSError, ValidationError):
            return Holder.model_validate_json(self._path.read_bytes())
        return None


def down_command(home: Path) -> str:
    """What stops the system that serves `home`."""
    return f"ramole --home {shlex.quote(str(home))} down"


@contextmanager
def _usable(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise ConfigError(
            f"RAMOLE_HOME={home}: {e.strerror or e}; choose a folder that you may write to"
        ) from e


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
