"""The doctor on a real Redis and a directory store: what is not well is named with its remedy."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from producer import doctor
from producer.broker import Broker
from producer.doctor import Check, examine
from ramole_core import messages
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from tests.unit.producer.test_versions import put_router
from tests.unit.producer.world import World
from worker.ledger import Ledger


@pytest.fixture
def redis(redis_url: str) -> Iterator[Any]:
    """With one live worker, and settings put back afterwards."""
    client: Any = Redis.from_url(redis_url)
    client.config_set("maxmemory-policy", "noeviction")
    client.zadd(messages.WORKERS, {"w1": time.time()})
    before = client.config_get("appendonly", "maxmemory-policy", "maxmemory")
    yield client
    for name, value in before.items():
        client.config_set(name, value)


def found(world: World, redis_url: str) -> dict[str, Check]:
    settings = Settings.load({}, home=world.home, broker_url=redis_url)
    return {check.name: check for check in examine(settings)}


def test_all_is_well(redis: Any, redis_url: str, world: World) -> None:
    checks = found(world, redis_url)
    assert all(check.ok for check in checks.values()), checks
    assert list(checks) == [
        "settings", "broker", "rights", "eviction", "persistence", "workers", "bank memory",
        "store", "base model", "encoder", "router",
    ]  # fmt: skip
    assert checks["persistence"].detail == "appendonly yes"
    assert not world.store.children("probes/")


def test_a_broker_that_evicts_is_refused_and_one_without_a_file_is_not(
    redis: Any, redis_url: str, world: World
) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.config_set("appendonly", "no")
    checks = found(world, redis_url)
    assert not checks["eviction"].ok and "set it to noeviction" in checks["eviction"].detail
    assert checks["persistence"].ok and "a restart loses the queue" in checks["persistence"].detail


def test_a_broker_that_is_full_is_said_to_be_and_its_rules_are_not_blamed(
    redis: Any, redis_url: str, world: World
) -> None:
    redis.config_set("maxmemory", 1)
    checks = found(world, redis_url)
    assert not checks["eviction"].ok and "Redis is full" in checks["eviction"].detail
    assert "users.acl" not in checks["rights"].detail and "memory" in checks["rights"].detail


def test_a_bank_that_does_not_fit_a_worker_is_named(
    redis: Any, redis_url: str, world: World
) -> None:
    about = messages.AboutWorker(memory="weights 1.0 MiB = 1.0 MiB of 2.0 MiB", warnings=())
    Ledger(redis, "w1", 30, about.model_dump_json()).renew([])
    assert found(world, redis_url)["bank memory"].detail == f"w1: {about.memory}"
    redis.zadd(messages.WORKERS, {"of an earlier version": time.time()})
    assert found(world, redis_url)["bank memory"].ok
    about = about.model_copy(update={"warnings": ("RAMOLE_BANK_SIZE=9, but only 2",)})
    Ledger(redis, "w1", 30, about.model_dump_json()).renew([])
    check = found(world, redis_url)["bank memory"]
    assert (check.ok, check.detail) == (False, "w1: RAMOLE_BANK_SIZE=9, but only 2")


def test_a_broker_that_cannot_write_its_file_is_named(
    redis: Any, redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = Broker.info
    monkeypatch.setattr(Broker, "info", lambda self: info(self) | {"aof_last_write_status": "err"})
    check = found(world, redis_url)["persistence"]
    assert not check.ok and "is its disk full?" in check.detail


@pytest.mark.parametrize(("ahead", "said"), [(100, "behind"), (-100, "ahead of"), (30, "")])
def test_a_store_with_another_clock_is_named(
    ahead: int, said: str, redis: Any, redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = SimpleNamespace(time=lambda: time.time() + ahead)
    monkeypatch.setattr(doctor, "time", ours)
    check = found(world, redis_url)["store"]
    assert check.ok is not bool(said) and (not said or f"100 s {said}" in check.detail), check


def test_a_store_that_ignores_conditions_is_refused(
    redis: Any, redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryStore, "create", lambda self, key, data: not self.put(key, data))
    check = found(world, redis_url)["store"]
    assert not check.ok and "If-None-Match" in check.detail


def test_an_old_broker_is_refused_and_asked_no_further(
    redis: Any, redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, old = Broker.info, {"redis_version": "6.0.16", "valkey_version": "6.0.16"}
    monkeypatch.setattr(Broker, "info", lambda self: info(self) | old)
    checks = found(world, redis_url)
    assert not checks["broker"].ok and "6.2 or newer" in checks["broker"].detail
    assert "workers" not in checks and checks["store"].ok


def test_without_a_worker_the_remedy_is_named(redis: Any, redis_url: str, world: World) -> None:
    redis.delete(messages.WORKERS)
    check = found(world, redis_url)["workers"]
    assert not check.ok and "ramole up" in check.detail


def test_a_router_in_use_that_was_trained_for_another_base_is_named(
    redis: Any, redis_url: str, world: World
) -> None:
    put_router(world, "r1")
    world.client.use_router("r1")
    assert found(world, redis_url)["router"].ok
    put_router(world, "r1", base="0" * 64)
    check = found(world, redis_url)["router"]
    assert not check.ok and "another base" in check.detail


def test_a_store_that_is_full_is_one_finding(
    redis: Any, redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    check = found(world, redis_url)["store"]
    assert not check.ok and "No space left on device" in check.detail
    assert not list(Path(world.home / "store" / ".tmp").iterdir())
