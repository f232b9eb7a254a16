"""Router versions out of the store: read once, and in the shard's thread."""

import threading
from pathlib import Path

import pytest
import torch

from ramole_core import keys
from ramole_core.errors import NotFoundError, StoreUnavailableError
from ramole_core.jobs import Manifest
from ramole_core.mole.router import CARD_FILE, random_router
from ramole_core.store.directory import DirectoryStore
from tests.unit.worker.world import make_world, prompts, put_job
from worker.ledger import Claim, ShardRef
from worker.routers import MAX_KEPT, StoredRouters

VERSIONS = [f"r{number}" for number in range(MAX_KEPT + 2)]


class Store(DirectoryStore):
    """Counts reads of cards; those of the version `slow` wait until they are let go."""

    slow = ""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []
        self.entered, self.let_go = threading.Event(), threading.Event()

    def get(self, key: str) -> bytes:
        if key.endswith(CARD_FILE):
            version = key.split("/")[-2]
            self.reads.append(version)
            if version == self.slow:
                self.entered.set()
                assert self.let_go.wait(30)
        return super().get(key)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "store")
    for number, version in enumerate(VERSIONS):
        router = random_router({"x": (3, 2)}, 1, torch.Generator().manual_seed(number))
        for name, content in router.to_files().items():
            found.put(keys.router(version) + name, content)
    return found


def test_the_versions_asked_for_last_are_read_once(store: Store) -> None:
    routers = StoredRouters(store)
    last = VERSIONS[-MAX_KEPT:]
    first = [routers.load_router(version) for version in VERSIONS]
    assert [routers.load_router(version) for version in last] == first[-MAX_KEPT:]
    assert store.reads == VERSIONS
    routers.load_router(VERSIONS[0])
    routers.load_router(last[-1])
    assert store.reads == [*VERSIONS, VERSIONS[0]]


def test_what_cannot_be_read_is_asked_for_again(store: Store) -> None:
    routers = StoredRouters(store)
    for _ in range(2):
        with pytest.raises(NotFoundError):
            routers.load_router("ghost")
    assert store.reads == ["ghost", "ghost"]


def test_who_needs_a_router_that_was_read_waits_for_no_other_read(store: Store) -> None:
    routers = StoredRouters(store)
    routers.load_router("r0")
    store.slow = "r1"
    reader = threading.Thread(target=routers.load_router, args=("r1",))
    reader.start()
    assert store.entered.wait(30)
    found = []
    other = threading.Thread(target=lambda: found.append(routers.load_router("r0")), daemon=True)
    other.start()
    other.join(5)
    assert found
    store.let_go.set()
    reader.join(30)


def test_a_shard_reads_the_jobs_router_itself_and_an_outage_costs_no_attempt(
    tmp_path: Path, redis_url: str
) -> None:
    world = make_world(tmp_path, redis_url)
    manifest = put_job(world.store, "j", prompts("a"))
    pins = manifest.pins.model_copy(update={"router": "r7"})
    pinned = Manifest.model_validate(manifest.model_dump() | {"pins": pins.model_dump()})
    world.store.put(keys.manifest("j"), pinned.model_dump_json().encode())
    assert world.desk.start("j")
    world.dispatcher.fill()

    def unreachable(version: str) -> None:
        raise StoreUnavailableError(f"{version} does not come")

    world.engine.on_router = unreachable
    with pytest.raises(StoreUnavailableError, match="r7"):
        world.run_next()
    assert world.engine.requests == []
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 1
