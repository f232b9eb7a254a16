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
from tests.unit.producer.world import World


@pytest.fixture
def redis(redis_url: str) -> Iterator[Any]:
    """With one live worker, and settings put back afterwards."""
    client: Any = Redis.from_url(redis_url)
    client.config_set("maxmemory-policy", "noeviction")
    client.zadd(messages.WORKERS, {"w1": time.time()})
    before = client.config_get("appendonly", "maxmemory-policy")
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
        "settings", "broker", "rights", "memory", "persistence", "workers", "store", "base model",
        "encoder", "router",
    ]  # fmt: skip
    assert checks["persistence"].detail == "appendonly yes"
    assert not world.store.children("probes/")


def test_a_broker_that_evicts_is_refused_and_one_without_a_file_is_not(
    redis: Any, redis_url: str, world: World
) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.config_set("appendonly", "no")
    checks = found(world, redis_url)
    assert not checks["memory"].ok and "set it to noeviction" in checks["memory"].detail
    assert checks["persistence"].ok and "a restart loses the queue" in checks["persistence"].detail


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


def test_a_store_that_is_full_is_one_finding(
    redis: Any, redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    check = found(world, redis_url)["store"]
    assert not check.ok and "No space left on device" in check.detail
    assert not list(Path(world.home / "store" / ".tmp").iterdir())
