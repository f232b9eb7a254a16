"""A worker's parts around fakes: a real Redis and a directory store, no model."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis

from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.adapters.registry import Registry
from ramole_core.engine.request import Generation, GenerationFuture, GenerationRequest
from ramole_core.errors import NotFoundError, PromptError
from ramole_core.jobs import JobOptions, Manifest, Pins, PromptRequest, PromptResult
from ramole_core.retrieval.card import ConfidenceScale
from ramole_core.retrieval.encoder import Vectors
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore
from ramole_core.store.directory import DirectoryStore
from worker.dispatcher import Dispatcher
from worker.encoders import Encoders
from worker.journal import RECORD, Journal
from worker.leases import LeaseKeeper
from worker.ledger import Ledger, ShardRef
from worker.lifecycle import JobDesk
from worker.quiet import Quiet
from worker.shards import ShardRunner

WIDTH = 16


def fake_embed(texts: list[str]) -> Vectors:
    """Bag of letters: similar texts, similar vectors."""
    rows = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for letter in text:
            row[ord(letter) % WIDTH] += 1
        row /= max(float(np.linalg.norm(row)), 1e-9)
    return rows


class FakeEncoder:
    """`fake_embed` as an encoder. Counts calls; a text `poison` breaks the batch it is in; `gate`
    holds the calls while it is closed."""

    width = WIDTH

    def __init__(
        self,
        version: str = "fake",
        tau: float = 0.05,
    ) -> None:
        self.version, self.tau = version, tau
        self.confidence = ConfidenceScale(floor=-0.1, spread=0.5)
        self.vectors: dict[str, str] = {}
        self.calls: list[list[str]] = []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def encode(self, texts: list[str]) -> Vectors:
        self.calls.append(texts)
        self.entered.set()
        self.gate.wait(10)
        if "poison" in texts:
            raise ValueError("a bug in the model")
        return fake_embed(texts)


def no_encoder(version: str) -> Any:
    """Stands for EncoderSource.load where nothing but the first encoder exists."""
    raise NotFoundError("it is not in the store")


class FakeEngine:
    """Answers with the prompt in capitals; `bad` prompts fail; `held` prompts wait."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.held: list[GenerationFuture] = []
        self.hold = False
        self.on_submit: Callable[[GenerationRequest], None] = lambda request: None

        self.on_router: Callable[[str], None] = lambda version: None

    def read_router(self, version: str) -> None:
        self.on_router(version)

    def submit(self, request: GenerationRequest) -> GenerationFuture:
        self.requests.append(request)
        self.on_submit(request)
        future = GenerationFuture()
        if self.hold:
            self.held.append(future)
        elif request.prompt == "bad":
            future.set_exception(PromptError("too_long", "12 tokens, the limit is 8"))
        else:
            weights = tuple(1 / len(request.experts) for _ in request.experts)
            text = (request.prompt or "messages").upper()
            future.set_result(Generation(text, "stop", 3, 2, weights))
        return future


@dataclass
class World:
    """One worker's parts over a store and a Redis."""

    store: ObjectStore
    ledger: Ledger
    engine: FakeEngine
    encoders: Encoders
    runner: ShardRunner
    desk: JobDesk
    dispatcher: Dispatcher
    leases: LeaseKeeper
    draining: threading.Event
    journal: Path
    quiet: Quiet
    sent: list[tuple[str, list[str]]] = field(default_factory=list)

    def results(self, job_id: str, shard: str = "00000") -> list[PromptResult]:
        data = self.store.get(keys.output_shard(job_id, shard))
        return [PromptResult.model_validate_json(line) for line in data.splitlines()]

    def run_next(self) -> ShardRef:
        """Claims and runs the shard that was sent longest ago."""
        _, (job_id, shard) = self.sent.pop(0)
        claim = self.ledger.claim(ShardRef(job_id, shard), max_attempts=3)
        assert not isinstance(claim, str), claim
        self.runner.run(claim)
        return claim.ref


def make_world(
    folder: Path, redis_url: str, worker: str = "w1", lease_seconds: float = 30, **changes: Any
) -> World:
    store = changes.get("store") or DirectoryStore(folder / "store")
    redis = Redis.from_url(redis_url, decode_responses=True)
    ledger = Ledger(redis, worker, lease_seconds)
    registry = Registry(store)
    engine = FakeEngine()
    leases = LeaseKeeper(ledger, lease_seconds, lambda: True, lambda: None)
    draining, quiet = threading.Event(), Quiet()
    journal = folder / "journals"
    encoders = changes.get("encoders") or Encoders(
        store,
        registry,
        Activations(store),
        no_encoder,
        FakeEncoder(),  # type: ignore[arg-type]
        draining,
    )
    desk = JobDesk(store, ledger)
    sent: list[tuple[str, list[str]]] = []

    def send(name: str, args: list[str], **_: Any) -> None:
        sent.append((name, args))

    dispatcher = Dispatcher(ledger, send, 8)

    def on_done(ref: ShardRef, job_done: bool) -> None:
        if job_done:
            desk.finalise(ref.job_id)

    runner = ShardRunner(
        store,
        ledger,
        leases,
        registry,
        encoders,
        engine,  # type: ignore[arg-type]
        draining,
        on_done,
        Journal(journal, worker),
        quiet,
        changes.get("settings") or Settings(),
    )
    return World(
        store, ledger, engine, encoders, runner, desk, dispatcher, leases, draining,
        journal / f"{worker}{RECORD}", quiet, sent,
    )  # fmt: skip


def put_job(
    store: ObjectStore, job_id: str, prompts: list[PromptRequest], **options: Any
) -> Manifest:
    """A job as a producer submits it, without a producer."""
    settings = JobOptions(**options)
    size = settings.shard_size
    chunks = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    for number, chunk in enumerate(chunks):
        lines = "".join(p.model_dump_json(exclude_defaults=True) + "\n" for p in chunk)
        store.put(keys.input_shard(job_id, "s1", f"{number:05d}"), lines.encode())
    manifest = Manifest(
        job_id=job_id,
        created_at="2026-01-01T00:00:00+00:00",
        submission="s1",
        content_sha256="0" * 64,
        options=settings,
        pins=Pins(base="b", encoder="fake", router=None, registry=0),
        num_prompts=len(prompts),
        num_bad_lines=0,
        num_shards=len(chunks),
    )
    store.put(keys.live(job_id), b"")
    store.put(keys.manifest(job_id), manifest.model_dump_json().encode())
    return manifest


def prompts(*texts: str) -> list[PromptRequest]:
    return [PromptRequest(index=i, id=f"p{i}", prompt=text) for i, text in enumerate(texts)]


def start(world: World, *texts: str, job: str = "j", **options: Any) -> None:
    """A job of these prompts is taken in and sent."""
    put_job(world.store, job, prompts(*texts), **options)
    assert world.desk.start(job)
    world.dispatcher.fill()
