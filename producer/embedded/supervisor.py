"""Runs the embedded system: the broker first, then the workers; restarts what crashes.

Contract: one supervisor per data folder (OwnerLock); on SIGTERM or SIGINT the workers get
`grace_seconds` to hand their shards back, the broker stops last; a second signal cuts the grace
short. A worker that finds its settings wrong (exit code 78) stops everything with its reason.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from producer.broker import Broker
from producer.embedded.broker_process import broker_argv
from producer.embedded.child import Child, last_lines
from producer.embedded.lock import Holder, OwnerLock, Phase
from ramole_core import keys
from ramole_core.errors import ConfigError, RamoleError, UnavailableError
from ramole_core.settings import Settings, redacted
from ramole_core.store import open_store

EX_CONFIG: Final = 78
GRACE_SECONDS: Final = 30.0
BROKER_START_SECONDS: Final = 60.0
BROKER_STOP_SECONDS: Final = 10.0
TICK_SECONDS: Final = 0.1
WORKER_ARGV: Final = (sys.executable, "-m", "worker")


class Supervisor:
    """One run of the embedded system. `worker_argv` is the command of a worker process."""

    def __init__(
        self,
        settings: Settings,
        num_workers: int = 1,
        worker_argv: Sequence[str] = WORKER_ARGV,
        grace_seconds: float = GRACE_SECONDS,
        on_ready: Callable[[Holder], None] = lambda holder: None,
    ) -> None:
        self._settings = settings
        self._grace_seconds = grace_seconds
        self._on_ready = on_ready
        self._lock = OwnerLock(settings.home)
        self._phase: Phase = "starting"
        self._message = ""
        self._num_signals = 0
        self._since = 0.0
        self._broker: Child | None = None
        self._workers = [
            Child(f"worker-{i}", list(worker_argv), self._worker_env(), self._log(f"worker-{i}"))
            for i in range(num_workers)
        ]

    def run(self) -> None:
        """Blocks until a signal stops it. Raises ConflictError, ConfigError, UnavailableError."""
        self._lock.acquire()
        try:
            self._describe()
            self._catch_signals()
            self._start()
            while not self._num_signals:
                self._look()
                time.sleep(TICK_SECONDS)
        except RamoleError as e:
            self._phase, self._message = "failed", str(e)
            raise
        finally:
            self._stop()
            self._lock.release()

    def _start(self) -> None:
        open_store(self._settings).check()
        if self._settings.embedded_broker:
            self._start_broker()
        else:
            Broker(self._settings).check()
        if not self._num_signals:
            self._since = Broker(self._settings).now()
            for worker in self._workers:
                worker.start()
        self._describe()

    def _start_broker(self) -> None:
        self._broker = Child(
            "broker",
            broker_argv(self._settings),
            os.environ,
            self._log("broker"),
            orphan_signal=signal.SIGTERM,
        )
        self._broker.start()
        deadline = time.monotonic() + BROKER_START_SECONDS
        while not self._num_signals:
            with suppress(UnavailableError):
                return Broker(self._settings).check()
            if not self._broker.running or time.monotonic() > deadline:
                said = " ".join(last_lines(self._broker.log, 1))
                raise UnavailableError(f"the embedded broker did not start: {said}")
            time.sleep(TICK_SECONDS)
        return None

    def _look(self) -> None:
        """One tick: restart what died, notice when all is ready."""
        before = self._pids()
        for worker in self._workers:
            if worker.exit_code == EX_CONFIG:
                raise ConfigError(f"{worker.name} cannot run: {_last_message(worker.log)}")
            worker.keep_up()
        if self._broker is not None:
            self._broker.keep_up()
        if self._phase == "starting" and self._ready():
            self._phase = "ready"
            self._describe()
            self._on_ready(self._holder())
        elif before != self._pids():
            self._describe()

    def _ready(self) -> bool:
        """True once a worker of this run lives and the store has its base model."""
        with suppress(UnavailableError):
            beating = Broker(self._settings).live_workers(since=self._since)
            return bool(beating) and open_store(self._settings).exists(keys.BASE)
        return False

    def _stop(self) -> None:
        """Stops the workers, then the broker."""
        if self._phase != "failed":
            self._phase = "stopping"
        self._describe()
        for worker in self._workers:
            worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while any(w.running for w in self._workers):
            if time.monotonic() > deadline or self._num_signals > 1:
                break
            time.sleep(TICK_SECONDS)
        for worker in self._workers:
            worker.kill()
        if self._broker is not None:
            self._broker.signal(signal.SIGTERM)
            if not self._broker.wait(BROKER_STOP_SECONDS):
                self._broker.kill()

    def _catch_signals(self) -> None:
        def note(signum: int, frame: Any) -> None:
            self._num_signals += 1

        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, note)

    def _worker_env(self) -> dict[str, str]:
        chosen = {"RAMOLE_HOME": str(self._settings.home), "PYTHONUNBUFFERED": "1"}
        if self._settings.model:
            chosen["RAMOLE_MODEL"] = self._settings.model
        return {**os.environ, **chosen}

    def _log(self, name: str) -> Path:
        return self._settings.home / "logs" / f"{name}.log"

    def _pids(self) -> list[int | None]:
        return [child.pid for child in [*self._workers, *([self._broker] if self._broker else [])]]

    def _holder(self) -> Holder:
        return Holder(
            pid=os.getpid(),
            phase=self._phase,
            broker=redacted(self._settings.redis_url),
            broker_pid=self._broker.pid if self._broker else None,
            worker_pids=[worker.pid for worker in self._workers if worker.pid is not None],
            message=self._message,
        )

    def _describe(self) -> None:
        self._lock.describe(self._holder())


def _last_message(log: Path) -> str:
    """The last line of a worker's log; of a JSON line, its message."""
    line = " ".join(last_lines(log, 1))
    with suppress(ValueError, KeyError, TypeError):
        line = str(json.loads(line)["message"])
    return line.rpartition("cannot start: ")[2]
