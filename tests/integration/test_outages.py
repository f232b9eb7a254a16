"""Redis or the store out of reach: every command ends soon, in one line that says what to set."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ramole_core import keys, zoo
from ramole_core.activations import Activations
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.headers import read_header
from ramole_core.errors import UnavailableError
from ramole_core.jobs import PromptRequest
from ramole_core.store.directory import DirectoryStore
from tests.servers import free_port
from tests.unit.worker.world import put_job

LIMIT_SECONDS = 10.0
JOB = "live-job"


def zoo_linears() -> dict[str, tuple[int, int]]:
    """The linears of the zoo's base, without loading it."""
    header = read_header(zoo.base_path() / "model.safetensors")
    linears = {n.removesuffix(".weight"): i.shape for n, i in header.items() if "_proj." in n}
    return {name: (shape[0], shape[1]) for name, shape in linears.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as workers left it, with one live job, and a dataset."""
    folder = tmp_path_factory.mktemp("outage")
    store = DirectoryStore(folder / "store")
    base = BaseInfo(name="ramole-zoo", targets=zoo_linears(), context_tokens=8192)
    store.put(keys.BASE, base.model_dump_json().encode())
    Activations(store).start("fake")
    put_job(store, JOB, [PromptRequest(index=0, prompt="a")])
    (folder / "p.txt").write_text("hello\n")
    return folder


@pytest.fixture(scope="module")
def frozen_port() -> Iterator[int]:
    """Somebody listens and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield int(listener.getsockname()[1])


def every_command(folder: Path) -> dict[str, list[str]]:
    adapter, samples = zoo.adapter_path("reverse-zoo"), zoo.samples_path("reverse-zoo")
    return {
        "submit": ["submit", str(folder / "p.txt")],
        "status": ["status", JOB],
        "wait": ["wait", JOB],
        "cancel": ["cancel", JOB],
        "retry": ["retry", JOB],
        "search": ["search", "hello"],
        "upload": ["adapters", "upload", str(adapter), "--name", "n", "--samples", str(samples)],
        "doctor": ["doctor"],
        "jobs": ["jobs"],
        "prune": ["jobs", "prune", "--older-than", "30d"],
        "results": ["results", JOB],
        "list": ["adapters", "list"],
        "show": ["adapters", "show", "n"],
        "remove": ["adapters", "remove", "n"],
        "encoders": ["encoders", "list"],
        "routers": ["routers", "use", "none"],
    }


# What the store alone can answer: these work (or find nothing) while Redis is away.
STORE_ONLY = {"jobs", "prune", "results", "list", "show", "remove", "retry", "encoders", "routers"}


def run_all(
    commands: dict[str, list[str]], **variables: str
) -> dict[str, tuple["subprocess.CompletedProcess[str]", float]]:
    """Runs the commands six at a time; name -> (what came of it, seconds)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAMOLE_")} | variables

    def run(words: list[str]) -> tuple["subprocess.CompletedProcess[str]", float]:
        began = time.monotonic()
        argv = [sys.executable, "-m", "producer", *words]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        return done, time.monotonic() - began

    with ThreadPoolExecutor(6) as pool:
        return dict(zip(commands, pool.map(run, commands.values()), strict=True))


def check_failed(
    name: str, done: "subprocess.CompletedProcess[str]", seconds: float, *said: str
) -> None:
    output = done.stderr + (done.stdout if name == "doctor" else "")
    assert done.returncode == UnavailableError.exit_code, (name, done)
    assert seconds < LIMIT_SECONDS, name
    assert "Traceback" not in done.stdout + done.stderr, name
    assert "s3cret" not in done.stdout + done.stderr, name
    assert all(word in output for word in said), (name, output)
    if name != "doctor":  # which prints a line for each thing it looked at
        assert len(done.stderr.splitlines()) == 1, (name, done.stderr)


@pytest.mark.parametrize("how", ["refused", "frozen"])
def test_without_redis(how: str, folder: Path, frozen_port: int, tmp_path: Path) -> None:
    port = frozen_port if how == "frozen" else free_port()
    found = run_all(
        every_command(folder),
        RAMOLE_HOME=str(tmp_path),
        RAMOLE_BROKER_URL=f"redis://:s3cret@127.0.0.1:{port}/0",
        RAMOLE_STORE_URL=str(folder / "store"),
    )
    for name, (done, seconds) in found.items():
        if name in STORE_ONLY:
            assert "Traceback" not in done.stderr and seconds < LIMIT_SECONDS
        else:
            check_failed(name, done, seconds, f"127.0.0.1:{port}", "RAMOLE_BROKER_URL")


@pytest.mark.parametrize("how", ["refused", "frozen"])
def test_without_the_store(
    how: str, folder: Path, frozen_port: int, tmp_path: Path, redis_url: str
) -> None:
    port = frozen_port if how == "frozen" else free_port()
    found = run_all(
        every_command(folder),
        RAMOLE_HOME=str(tmp_path),
        RAMOLE_BROKER_URL=redis_url,
        RAMOLE_STORE_URL=f"s3://bucket/prefix?endpoint=http://127.0.0.1:{port}",
        RAMOLE_STORE_ACCESS_KEY="me",
        RAMOLE_STORE_SECRET_KEY="s3cret",
    )
    for name, (done, seconds) in found.items():
        check_failed(name, done, seconds, f"127.0.0.1:{port}", "RAMOLE_STORE_URL")


def test_a_worker_without_redis_or_store_says_so_and_ends(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAMOLE_")}
    env |= {"RAMOLE_HOME": str(tmp_path), "RAMOLE_BROKER_URL": f"redis://127.0.0.1:{free_port()}"}
    argv = [sys.executable, "-m", "worker"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == UnavailableError.exit_code
    assert "RAMOLE_BROKER_URL" in done.stderr and "Traceback" not in done.stderr
