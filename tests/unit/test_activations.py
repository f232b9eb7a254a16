"""The log of versions in use: order, rollback, races, damage."""

import threading
from pathlib import Path

import pytest

from ramole_core import keys
from ramole_core.activations import Activations, Active
from ramole_core.errors import InvalidInputError
from ramole_core.store.directory import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


@pytest.fixture
def log(store: DirectoryStore) -> Activations:
    return Activations(store)


def length(store: DirectoryStore) -> int:
    return len(store.children(keys.ACTIVATIONS))


def test_before_the_first_worker_nothing_is_in_use(log: Activations) -> None:
    assert log.active() == Active("", None) and log.first_encoder() == ""


def test_the_first_worker_s_encoder_stands_whatever_later_workers_bring(
    log: Activations, store: DirectoryStore
) -> None:
    assert log.start("mini") == Active("mini")
    assert log.start("other") == Active("mini")
    log.use("encoder", "e1")
    assert log.start("mini") == Active("e1")
    assert log.first_encoder() == "mini" and length(store) == 2


def test_the_first_encoder_is_the_first_even_when_a_router_came_before(log: Activations) -> None:
    log.use("router", "r1")
    assert log.start("mini") == Active("mini", "r1")
    assert log.first_encoder() == "mini"


def test_encoder_and_router_are_switched_independently(log: Activations) -> None:
    log.start("mini")
    log.use("router", "r1")
    log.use("encoder", "e1")
    assert log.active() == Active("e1", "r1")
    assert log.use("router", None) == Active("e1", None)


def test_using_what_is_in_use_writes_nothing(log: Activations, store: DirectoryStore) -> None:
    log.start("mini")
    for kind, version in (("encoder", "mini"), ("router", None)):
        log.use(kind, version)  # type: ignore[arg-type]
    assert length(store) == 1


def test_rollbacks_go_back_step_by_step_and_no_further(log: Activations) -> None:
    log.start("mini")
    for version in ("e1", "e2", "e1"):
        log.use("encoder", version)
    assert [log.rollback("encoder").encoder for _ in range(3)] == ["e2", "e1", "mini"]
    with pytest.raises(InvalidInputError, match="no earlier encoder"):
        log.rollback("encoder")
    assert log.use("encoder", "e3").encoder == "e3"
    assert log.rollback("encoder").encoder == "mini"


def test_the_first_router_rolls_back_to_none(log: Activations) -> None:
    with pytest.raises(InvalidInputError, match="no earlier router"):
        log.rollback("router")
    log.use("router", "r1")
    log.use("router", None)
    assert log.rollback("router").router == "r1"
    assert log.rollback("router").router is None


def test_of_two_writers_at_once_both_entries_stand_in_some_order(store: DirectoryStore) -> None:
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        log = Activations(store)
        barrier.wait()
        log.start(f"first-{number}")
        log.use("encoder", f"e{number}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = [entry.version or "" for entry in Activations(store).entries()]
    assert sorted(versions[1:]) == [f"e{n}" for n in range(6)]
    assert versions[0].startswith("first-")


def test_one_view_follows_what_another_writes(store: DirectoryStore) -> None:
    mine, theirs = Activations(store), Activations(store)
    mine.start("mini")
    theirs.use("encoder", "e1")
    assert mine.active() == Active("e1")


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"op": "use", "kind": "gate", "at": "x"}'])
def test_a_damaged_entry_is_named_and_nothing_is_written_behind_it(
    store: DirectoryStore, damage: bytes
) -> None:
    Activations(store).start("mini")
    store.put(keys.activation(2), damage)
    for call in (lambda log: log.active(), lambda log: log.use("encoder", "e1")):
        with pytest.raises(InvalidInputError, match=r"activations/00000002\.json"):
            call(Activations(store))
    assert length(store) == 2
