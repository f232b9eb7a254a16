"""A producer's surroundings around fakes: a directory store that a worker seems to have opened,
a broker that remembers what was sent, and the outputs a worker would have written."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from producer.client import Client
from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.errors import BrokerUnavailableError
from ramole_core.job_files import JobFiles
from ramole_core.jobs import ErrorRecord, Finished, PromptRequest, PromptResult
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore
from ramole_core.store.directory import DirectoryStore

BASE = BaseInfo(name="tiny", targets={"model.layers.0.q_proj": (4, 6)}, context_tokens=64)


class FakeBroker:
    """Stands for producer.broker.Broker. `on_send` is where a worker would take over."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ...]] = []
        self.down = False
        self.workers = ["w1"]
        self.shards: dict[str, str] = {}
        self.on_send: Callable[[tuple[str, ...]], None] = lambda message: None

    def check(self) -> None:
        if self.down:
            raise BrokerUnavailableError("Redis is down")

    def send(self, task: str, *ids: str) -> None:
        self.check()
        self.sent.append((task, *ids))
        self.on_send((task, *ids))

    def progress(self, job_id: str) -> dict[str, str]:
        self.check()
        return self.shards

    def live_workers(self, since: float = 0.0) -> list[str]:
        self.check()
        return self.workers


class FakeClock:
    """Time passes only when somebody sleeps; `on_sleep` is what happens meanwhile."""

    def __init__(self) -> None:
        self.time = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.on_sleep()


class World:
    """A client on a store in `home`, with fakes around it."""

    def __init__(self, home: Path, announced: bool = True) -> None:
        self.home = home
        self.store = DirectoryStore(home / "store")
        self.broker = FakeBroker()
        self.clock = FakeClock()
        self.client = Client(Settings.load({}, home=home), clock=self.clock)  # type: ignore[arg-type]
        self.client.broker = self.broker  # type: ignore[assignment]
        if announced:
            announce(self.store)

    def requests(self, job_id: str) -> list[PromptRequest]:
        """Everything a job's shards hold, in order."""
        job = JobFiles(self.store, job_id)
        manifest = job.manifest()
        return [r for shard in manifest.shard_names() for r in job.requests(manifest, shard)]

    def answer(self, job_id: str, num_shards: int | None = None, bad: str = "bad") -> None:
        """Writes the outputs of the first shards; prompts that contain `bad` fail."""
        job = JobFiles(self.store, job_id)
        manifest = job.manifest()
        for shard in manifest.shard_names()[:num_shards]:
            lines = [result_of(request, bad) for request in job.requests(manifest, shard)]
            self.store.create(keys.output_shard(job_id, shard), b"".join(lines))

    def finish(self, job_id: str) -> None:
        """Answers everything and ends the job."""
        self.answer(job_id)
        job = JobFiles(self.store, job_id)
        counts = [job.count(shard) for shard in job.manifest().shard_names()]
        ok, failed = (sum(column) for column in zip(*counts, strict=True))
        final = Finished(finished_at="2026-01-31T06:00:00+00:00", num_ok=ok, num_failed=failed)
        self.store.create(keys.finished(job_id), final.model_dump_json().encode())

    def keys(self) -> list[str]:
        """All keys of the store but those every store has."""
        root = self.home / "store"
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        names = {path.as_posix() for path in found if path.parts[0] != ".tmp"}
        return sorted(n for n in names - {keys.BASE} if not n.startswith(keys.ACTIVATIONS))


class Cut(Exception):
    """What a store call raises when the test cuts there."""


class CutStore:
    """An object store that dies at its n-th call (counted from 1), before or after doing it."""

    def __init__(self, store: ObjectStore, at: int, after: bool = False) -> None:
        self._store = store
        self._at = at
        self._after = after
        self.num_calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any) -> Any:
            self.num_calls += 1
            if self.num_calls >= self._at and not self._after:
                raise Cut(name)
            value = method(*args)
            if self.num_calls >= self._at:
                raise Cut(name)
            return value

        return call


def announce(store: ObjectStore, router: str | None = None) -> None:
    """Writes what the first worker of a store writes."""
    store.put(keys.BASE, BASE.model_dump_json().encode())
    Activations(store).start("enc-1")
    Activations(store).use("router", router)


def result_of(request: PromptRequest, bad: str = "bad") -> bytes:
    """The line a worker would write for a request."""
    error = request.error
    if error is None and bad in request.query():
        error = ErrorRecord(code="too_long", message="too long")
    text = None if error else request.query().upper()
    result = PromptResult(index=request.index, id=request.id, text=text, error=error)
    return result.model_dump_json().encode() + b"\n"


def write_adapter(folder: Path, **config: Any) -> Path:
    """An adapter for BASE as PEFT would save it, made without torch."""
    folder.mkdir(parents=True)
    given = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(given))
    prefix, header, data = "base_model.model.model.layers.0.q_proj", {}, b""
    for part, shape in (("lora_A", (2, 6)), ("lora_B", (4, 2))):
        values = struct.pack(f"<{shape[0] * shape[1]}f", *range(shape[0] * shape[1]))
        header[f"{prefix}.{part}.weight"] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights = struct.pack("<Q", len(text)) + text + data
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder
