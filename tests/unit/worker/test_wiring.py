"""What the parts of a worker must know of each other: watchdog, journal, leases, quiet."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.adapters.registry import Registry
from ramole_core.engine.request import GenerationRequest
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from tests.servers import wait_until
from tests.unit.worker.world import FakeEncoder, World, make_world, no_encoder, start
from worker.encoders import Encoders
from worker.encoding import embedding_for
from worker.journal import Journal, PromptRef
from worker.ledger import OWNERS, Claim, ShardRef
from worker.services import EX_SOFTWARE, STALL_SECONDS, Services, _end_process, open_services
from worker.shards import ShardAbandonedError

SHARD = ShardRef("j", "00000")


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> Iterator[Services]:
    """Those of a real process, before its threads start."""
    settings = Settings.load({}, home=tmp_path, broker_url=redis_url)
    found = open_services(settings, lambda *_, **__: None)
    yield found
    found.encoders.stop()
    found.journal.close()


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url)


def test_a_process_whose_engine_or_encoder_stands_still_is_ended(services: Services) -> None:
    leases, engine = services.leases, services.engine
    assert leases._on_stuck is _end_process
    ended: list[str] = []
    leases._on_stuck = lambda: ended.append(now)
    long_ago = time.monotonic() - STALL_SECONDS - 1
    now = "nothing"
    leases.beat()
    now, engine.progress_at = "engine", long_ago
    leases.beat()
    engine.progress_at = time.monotonic()
    with services.encoders.active() as serving:
        now, serving.service.progress_at = "idle encoder", long_ago
        leases.beat()
        now, serving.service.idle = "encoder", False
        leases.beat()
    assert ended == ["engine", "encoder"]


def test_a_process_that_is_to_end_ends() -> None:
    code = "from worker.services import _end_process\n_end_process()\nprint('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (EX_SOFTWARE, b"")


def test_a_prompt_that_runs_alone_is_in_the_journal_while_nothing_is_embedded(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    seen: list[tuple[frozenset[Hashable], bool]] = []

    def running(self: Journal, tags: frozenset[Hashable]) -> None:
        seen.append((tags, services.encoders._quiet.locked()))

    monkeypatch.setattr(Journal, "running", running)
    services: Services = request.getfixturevalue("services")
    tag = PromptRef("j", 3, alone=True)
    future = services.engine.submit(
        GenerationRequest(prompt="a", max_new_tokens=1, alone=True, tag=tag)
    )
    while services.engine.step():
        pass
    assert future.done() and seen[0] == (frozenset({tag}), True)
    assert not services.encoders._quiet.locked()


def test_whose_texts_are_embedded_is_in_the_journal(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    seen: list[frozenset[Claim]] = []
    monkeypatch.setattr(Journal, "embedding", lambda self, version, claims: seen.append(claims))
    services: Services = request.getfixturevalue("services")
    claim = Claim(SHARD, 1, "t", exhausted=False)
    with services.encoders.active() as serving, embedding_for(claim):
        serving.service.encode(["a"])
    assert seen[0] == {claim}


def test_while_a_shard_runs_journal_and_store_know_of_its_attempt(
    world: World, tmp_path: Path
) -> None:
    seen: list[tuple[list[str], bool]] = []

    def claims() -> list[list[str]]:
        (path,) = (tmp_path / "journals").glob("*.json")
        return [claim[:3] for claim in json.loads(path.read_text())["claims"]]

    def look(_: GenerationRequest) -> None:
        seen.append((claims()[0], world.store.exists(keys.attempt("j", "00000", 1))))

    start(world, "a")
    world.engine.on_submit = look
    world.run_next()
    assert seen == [(["j", "00000", 1], True)] and claims() == []


def test_the_texts_of_a_shard_are_embedded_in_its_name(tmp_path: Path, redis_url: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    seen: list[set[ShardRef]] = []
    encoders = Encoders(
        store,
        Registry(store),
        Activations(store),
        no_encoder,
        FakeEncoder(),  # type: ignore[arg-type]
        threading.Event(),
        on_batch=lambda version, claims: seen.append({claim.ref for claim in claims}),
    )
    world = make_world(tmp_path, redis_url, store=store, encoders=encoders)
    start(world, "a")
    world.run_next()
    assert {SHARD} in seen


def test_a_shard_whose_lease_went_to_another_worker_is_let_go_unwritten(
    world: World, redis_url: str
) -> None:
    start(world, "a")
    world.engine.hold = True
    errors: list[str] = []

    def work() -> None:
        try:
            world.run_next()
        except ShardAbandonedError as e:
            errors.append(str(e))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: bool(world.engine.held))
    Redis.from_url(redis_url).hset(OWNERS, SHARD.member, "another's")
    world.leases.beat()
    thread.join(timeout=10)
    assert errors == ["the lease ran out and another worker may have the shard"]
    assert world.engine.held[0].cancelled()
    assert not world.store.exists(keys.output_shard("j", "00000"))
