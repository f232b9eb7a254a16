"""A whole embedded system for a test: broker, worker processes, a client; nothing is faked."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer.client import Client
from producer.embedded.control import start_detached, stop
from ramole_core import zoo
from ramole_core.settings import Settings

RAMOLE = (sys.executable, "-m", "producer")


@dataclass
class System:
    """A running system and the environment that leads to it."""

    settings: Settings
    env: dict[str, str]

    @property
    def client(self) -> Client:
        return Client(self.settings)

    def ramole(
        self, *words: str, stdin: bytes | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[bytes]":
        """Runs a command as a user does."""
        return subprocess.run(
            [*RAMOLE, *words], env=self.env, input=stdin, capture_output=True, timeout=timeout
        )

    def ramole_json(self, *words: str, **more: Any) -> Any:
        """The one JSON object of a command with `--json`; the command must succeed."""
        (record,) = self.ramole_json_lines(*words, **more)
        return record

    def ramole_json_lines(self, *words: str, **more: Any) -> list[Any]:
        """The JSON lines of a listing command with `--json`; the command must succeed."""
        done = self.ramole(*words, "--json", **more)
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines()]

    def worker_pids(self) -> list[int]:
        holder = json.loads((self.settings.home / "supervisor.lock").read_text())
        return list(holder["worker_pids"])

    def logs(self) -> str:
        folder = self.settings.home / "logs"
        return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))

    def upload_zoo(self, *names: str) -> None:
        client = self.client
        for name in names or zoo.adapter_names():
            client.upload_adapter(zoo.adapter_path(name), name, zoo.samples_path(name))


@contextlib.contextmanager
def running_system(
    home: Path, up: Sequence[str] = (*RAMOLE, "up"), **variables: str
) -> Iterator[System]:
    """`ramole up` on `home`; stopped at the end. `variables` are further settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAMOLE_")}
    env |= {"RAMOLE_HOME": str(home), **variables}
    settings = Settings.load(env)
    start_detached(settings, list(up), tied=True, env=env)
    try:
        yield System(settings, env)
    finally:
        stop(settings)


@contextlib.contextmanager
def worker_process(
    words: Sequence[str], env: dict[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python process that writes to `log`; ended with the block."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *words], env=env, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        finally:
            process.kill()


def kill(pid: int) -> None:
    """kill -9."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def zoo_prompts(count: int) -> list[dict[str, Any]]:
    """Evenly spread records of the zoo's test file."""
    lines = zoo.test_path().read_text().splitlines()
    return [json.loads(lines[i * len(lines) // count]) for i in range(count)]
