"""Starts and stops the embedded system from another process: `up --detach` and `down`."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from producer.embedded.child import last_lines, tie_to_parent
from producer.embedded.lock import Holder, OwnerLock
from producer.polling import poll
from ramole_core.errors import (
    ConfigError,
    ConflictError,
    RamoleError,
    TimedOutError,
    UnavailableError,
)
from ramole_core.settings import Settings

START_SECONDS: Final = 180.0
STOP_SECONDS: Final = 60.0
_ERRORS: Final[dict[int, type[RamoleError]]] = {2: ConfigError, 6: ConflictError}


def start_detached(
    settings: Settings,
    argv: Sequence[str],
    timeout_seconds: float = START_SECONDS,
    tied: bool = False,
    env: Mapping[str, str] | None = None,
) -> Holder:
    """Runs `argv` (a foreground `up`) in the background; returns when a worker is ready.

    `tied`: it is to stop when this process dies.

    Raises ConflictError, ConfigError, UnavailableError, and TimedOutError after stopping it.
    """
    lock = OwnerLock(settings.home)
    lock.acquire()  # refuses here, in the foreground, when another process serves the folder
    lock.release()
    log = settings.home / "logs" / "supervisor.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=tie_to_parent(signal.SIGTERM) if tied else None,
        )

    def look() -> Holder | None:
        holder = lock.holder()
        ready = holder is not None and holder.pid == process.pid and holder.phase == "ready"
        if not ready and process.poll() is not None:
            said = " ".join(last_lines(log, 1)).removeprefix("ramole: error: ")
            error = _ERRORS.get(process.returncode, UnavailableError)
            raise error(said or f"see {log}")
        return holder if ready else None

    found = poll(look, timeout_seconds)
    if found is not None:
        return found
    process.terminate()
    raise TimedOutError(
        f"no worker was ready within {timeout_seconds:g} s, so it was stopped again; "
        f"see {log.parent}: {' | '.join(last_lines(log.with_name('worker-0.log'), 3))}"
    )


def stop(settings: Settings, timeout_seconds: float = STOP_SECONDS) -> int | None:
    """Stops the holder of the data folder and waits until it is gone; its pid, None if none ran.

    Raises TimedOutError.
    """
    lock = OwnerLock(settings.home)
    holder = lock.await_holder()
    if holder is None:
        return None
    with suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGTERM)
    if poll(lambda: None if lock.held() else True, timeout_seconds) is None:
        raise TimedOutError(
            f"process {holder.pid} still holds {settings.home} after {timeout_seconds:g} s; "
            f"see {settings.home / 'logs'}"
        )
    return holder.pid
