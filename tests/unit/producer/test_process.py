"""The command line as a process: no torch, no traceback, an end within 10 s whatever is away."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from ramole_core import messages
from ramole_core.settings import Settings
from tests.unit.producer.world import World

CONTROL_LIST = f"{messages.KEY_PREFIX}celery:{messages.CONTROL_QUEUE}"
HEAVY = ("torch", "transformers", "faiss", "worker", "peft", "pyarrow", "celery", "redis", "minio")


def ramole(
    *args: str, home: Path, stdin: str | None = None, **env: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """One run of the real process; every error is one line without a traceback."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAMOLE_")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "producer", "--home", str(home), *args],
        env=clean | env, input=stdin, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout
    if done.returncode:
        assert done.stderr.count("\n") <= 1, done.stderr
    return done, time.monotonic() - began


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, producer.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def refused() -> str:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def frozen() -> Iterator[str]:
    """A server that takes the connection and never says a word."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A port whose backlog is full: connections are neither taken nor refused."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"
        for filler in fillers:
            filler.close()


@pytest.fixture(params=["refused", "frozen", "black_hole"])
def away(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_redis_out_of_reach_is_one_line_in_time(away: str, world: World) -> None:
    world.client.submit(["a"], job_id="j")
    url = f"redis://user:hunter2@{away}/0"

    def run(args: tuple[str, ...]) -> tuple[subprocess.CompletedProcess[str], float]:
        return ramole(*args, home=world.home, stdin="x\n", RAMOLE_BROKER_URL=url)

    commands = [("status", "j"), ("submit", "-", "--format", "text"), ("search", "x"), ("doctor",)]
    with ThreadPoolExecutor(4) as pool:
        for done, seconds in pool.map(run, commands):
            assert done.returncode == 5 and seconds < 10
            said = done.stderr + done.stdout
            assert away in said and "RAMOLE_BROKER_URL" in said and "hunter2" not in said
    done, _ = run(("jobs",))
    assert done.returncode == 0 and "queued" in done.stdout


def test_a_store_out_of_reach_is_one_line_in_time(away: str, home: Path) -> None:
    env = {
        "RAMOLE_STORE_URL": f"s3://bucket/x?endpoint=http://{away}",
        "RAMOLE_STORE_ACCESS_KEY": "k",
        "RAMOLE_STORE_SECRET_KEY": "hunter2",
    }

    def run(command: str) -> tuple[subprocess.CompletedProcess[str], float]:
        return ramole(*command.split(), home=home, stdin="", **env)

    with ThreadPoolExecutor(4) as pool:
        for done, seconds in pool.map(run, ["jobs", "submit -"]):
            assert done.returncode == 5 and seconds < 10
            assert away in done.stderr and "RAMOLE_STORE_URL" in done.stderr
            assert "hunter2" not in done.stderr


def test_without_the_embedded_system_it_says_how_to_start_it(world: World) -> None:
    world.client.submit(["a"], job_id="j")
    done, _ = ramole("status", "j", home=world.home)
    assert done.returncode == 5 and "start it with `ramole up`" in done.stderr
    stale = socket.socket(socket.AF_UNIX)  # what a broker killed with -9 leaves behind
    stale.bind(str(world.client.settings.socket_path))
    stale.close()
    done, _ = ramole("status", "j", home=world.home)
    assert done.returncode == 5 and "start it with `ramole up`" in done.stderr


def test_cron_may_submit_the_same_night_twice(world: World, redis_url: str, tmp_path: Path) -> None:
    from redis import Redis

    path = tmp_path / "night.jsonl"
    path.write_text('{"prompt": "a"}\n')
    command = ("submit", str(path), "--job-id", "nightly-2026-01-31", "--deadline", "8h", "--json")

    def run() -> dict[str, object]:
        done, _ = ramole(*command, home=world.home, RAMOLE_BROKER_URL=redis_url)
        return {"exit": done.returncode, **json.loads(done.stdout)}

    first, again = run(), run()
    assert first == again | {"created": True} and again["created"] is False
    bodies = Redis.from_url(redis_url).lrange(CONTROL_LIST, 0, -1)
    assert len(bodies) == 2 and all(messages.START_JOB.encode() in body for body in bodies)
    path.write_text('{"prompt": "b"}\n')
    other = run()
    assert other["exit"] == 6 and [r.prompt for r in world.requests("nightly-2026-01-31")] == ["a"]


def test_the_broker_reads_progress_and_fresh_heartbeats(redis_url: str, home: Path) -> None:
    from redis import Redis

    from producer.broker import Broker

    redis = Redis.from_url(redis_url)
    redis.hset(messages.progress("j"), "00000", "run 1 0")
    now = time.time()
    redis.zadd(messages.WORKERS, {"alive": now, "silent": now - 60})
    broker = Broker(Settings.load({}, home=home, broker_url=redis_url))
    broker.check()
    assert broker.progress("j") == {"00000": "run 1 0"}
    assert broker.live_workers() == ["alive"]
    assert broker.live_workers(since=now + 1) == []


def test_a_closed_pipe_is_quiet(world: World) -> None:
    world.client.submit(["a" * 1000] * 2000, job_id="j")
    world.finish("j")
    command = [sys.executable, "-m", "producer", "--home", str(world.home), "results", "j"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(20) == 1
    process.stderr.close()
