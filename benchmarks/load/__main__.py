"""How much the queue, the store and the registry bear: no model, a real broker, a directory.

    python -m benchmarks.load [--quick] [--json PATH]

One job of a million prompts from a file, and its cancellation; 10,000 jobs from 50 producer
processes at once, taken in by a ledger and listed; a registry of 5,000 adapters read from nothing,
and the index over their vectors built.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from redis import Redis

from benchmarks.report import Row, report
from producer.broker import Broker
from producer.client import Client
from producer.embedded.broker_process import broker_argv
from producer.embedded.child import Child
from producer.embedded.temporary import own_environment
from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.log import LogEntry
from ramole_core.adapters.registry import Registry
from ramole_core.errors import UnavailableError
from ramole_core.retrieval.retriever import Retriever
from ramole_core.retrieval.vectors import VectorShelf
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from worker.ledger import Ledger
from worker.lifecycle import JobDesk

LOOK_SECONDS: Final = 0.01
WIDTH: Final = 384  # of a vector
ENCODER: Final = "none"
AT: Final = "2026-01-31T06:00:00+00:00"
BASE: Final = BaseInfo(name="none", targets={"model.layers.0.q_proj": (4, 6)}, context_tokens=64)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    prompts: int = 1_000_000
    producers: int = 50
    jobs: int = 10_000
    adapters: int = 5_000


def main() -> int:
    """Runs the benchmark; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    arguments = parser.parse_args()
    scale = Scale(10_000, 4, 100, 50) if arguments.quick else Scale()
    with tempfile.TemporaryDirectory(prefix="ramole-load-") as folder:
        settings = Settings.load(own_environment(), home=Path(folder))
        with _broker(settings):
            _open_store(settings)
            rows = [*_one_large_job(settings, scale), *_many_jobs(settings, scale)]
        rows += _many_adapters(settings, scale)
    report(rows, asdict(scale), arguments.json)
    return 1 if any(row.met is False for row in rows) else 0


def _one_large_job(settings: Settings, scale: Scale) -> Iterator[Row]:
    """Submission by the command, whose whole process counts."""
    path = settings.home / "prompts.jsonl"
    with path.open("w") as file:
        for i in range(scale.prompts):
            file.write(f'{{"prompt": "Write the name of animal number {i} backwards."}}\n')
    words = ["producer", "submit", str(path), "--job-id", "large", "--json"]
    began = time.perf_counter()
    peak_bytes = _peak_bytes(_started(settings, words))
    seconds = time.perf_counter() - began
    yield Row("submit_prompts_per_second", scale.prompts / seconds, "prompts/s", 50_000)
    yield Row("submit_peak_memory", peak_bytes / 1e6, "MB", 200, "lower")
    client, desk = Client(settings), _desk(settings)
    yield Row("take_in_seconds", _timed(lambda: desk.start("large")), "s", better="lower")
    yield Row("cancel_seconds", _timed(lambda: client.cancel("large")), "s", 5, "lower")
    yield Row("let_go_seconds", _timed(lambda: desk.start("large")), "s", better="lower")


def _many_jobs(settings: Settings, scale: Scale) -> Iterator[Row]:
    """One prompt each. `scan` is what any worker does every 15 s for all jobs in flight."""
    each = scale.jobs // scale.producers
    began = time.perf_counter()
    module = "benchmarks.load.producer"
    started = [_started(settings, [module, f"p{i}", str(each)]) for i in range(scale.producers)]
    for process in started:
        _peak_bytes(process)
    num_jobs = each * scale.producers
    yield Row("producers_jobs_per_second", num_jobs / (time.perf_counter() - began), "jobs/s")
    desk, ledger = _desk(settings), _ledger(settings)
    yield Row("scan_new_seconds", _timed(desk.scan), "s", better="lower")
    found = Client(settings).store.children(keys.LIVE_JOBS)
    lost = num_jobs - sum(ledger.known(found))
    yield Row("jobs_lost", float(lost), "jobs", 0, "lower")
    yield Row("scan_known_seconds", _timed(desk.scan), "s", better="lower")
    yield Row("list_jobs_seconds", _timed(Client(settings).jobs), "s", better="lower")


def _started(settings: Settings, words: list[str]) -> "subprocess.Popen[bytes]":
    """A Python module on this system."""
    env = own_environment() | {"RAMOLE_HOME": str(settings.home)}
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=env, stdout=subprocess.DEVNULL, stderr=sys.stderr
    )


def _peak_bytes(process: "subprocess.Popen[bytes]") -> int:
    """Waits for its end; the most memory that it was seen with (the kernel's own figure for an
    ended process counts what it was forked from). Raises SystemExit when it failed."""
    peak = 0
    while process.poll() is None:
        with suppress(OSError):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = int(line.split()[1]) * 1024
        time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    return peak


def _many_adapters(settings: Settings, scale: Scale) -> Iterator[Row]:
    """The log and the vectors of a pool, written as an upload writes them."""
    store = DirectoryStore(Path(settings.store_location))
    registry = Registry(store)
    shelf = VectorShelf(store, ENCODER, _no_embedding, WIDTH)
    rng = np.random.default_rng(0)
    for i in range(scale.adapters):
        entry = LogEntry(
            op="add", name=f"a{i}", at=AT, sha256=f"{i:064d}", owner="me", upload_id=f"u{i}"
        )
        vector = rng.standard_normal(WIDTH, dtype=np.float32)
        shelf.keep(registry.add(entry).ref, vector / np.linalg.norm(vector))
    fresh = Registry(store)
    yield Row("registry_read_seconds", _timed(fresh.refresh), "s", better="lower")
    rows = _timed(Client(settings).adapters)
    yield Row("list_adapters_seconds", rows, "s", better="lower")
    retriever = Retriever(fresh, VectorShelf(store, ENCODER, _no_embedding, WIDTH), _random, WIDTH)
    build = _timed(lambda: retriever.prepare(fresh.active().values()))
    yield Row("index_build_seconds", build, "s", better="lower")


def _no_embedding(texts: list[str]) -> Any:
    raise AssertionError("every vector lies in the store")


def _random(texts: list[str]) -> Any:
    return np.ones((len(texts), WIDTH), np.float32) / WIDTH**0.5


@contextmanager
def _broker(settings: Settings) -> Iterator[None]:
    """The embedded broker, as the supervisor starts it."""
    log = settings.home / "broker.log"
    child = Child("broker", broker_argv(settings), os.environ, log)
    child.start()
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                Broker(settings).check()
                break
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
        yield
    finally:
        child.kill()


def _open_store(settings: Settings) -> None:
    """What the first worker writes."""
    store = DirectoryStore(Path(settings.store_location))
    store.create(keys.BASE, BASE.model_dump_json().encode())
    Activations(store).start(ENCODER)


def _ledger(settings: Settings) -> Ledger:
    return Ledger(Redis.from_url(settings.redis_url, decode_responses=True), "bench", 30.0)


def _desk(settings: Settings) -> JobDesk:
    return JobDesk(DirectoryStore(Path(settings.store_location)), _ledger(settings))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
