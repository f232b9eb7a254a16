"""Waiting for a job, whatever goes away meanwhile."""

import shutil

import pytest

from producer.client import OUTAGE_SECONDS
from ramole_core.errors import BrokerUnavailableError, StoreUnavailableError, TimedOutError
from ramole_core.jobs import JobState
from tests.unit.producer.world import World


def submitted(world: World) -> str:
    return world.client.submit(["a", "b", "c"], job_id="j", shard_size=2).job_id


def test_wait_returns_at_the_end_and_shows_progress(world: World) -> None:
    submitted(world)
    world.clock.on_sleep = lambda: world.finish("j")
    seen: list[JobState] = []
    status = world.client.wait("j", 60, on_progress=lambda s: seen.append(s.state))
    assert status.state.ended and seen[0] is JobState.QUEUED and seen[-1] is status.state


def test_wait_has_a_limit_and_backs_off(world: World) -> None:
    submitted(world)
    pauses: list[float] = []
    world.clock.on_sleep = lambda: pauses.append(world.clock.time)
    with pytest.raises(TimedOutError, match="0 of 3"):
        world.client.wait("j", 10)
    assert world.clock.time == pytest.approx(10)
    assert pauses[0] == pytest.approx(0.02) and len(pauses) < 40


def test_wait_survives_redis_going_away_but_not_its_absence(world: World) -> None:
    submitted(world)

    def gone() -> None:
        world.broker.down = True
        world.finish("j")

    world.clock.on_sleep = gone
    assert world.client.wait("j", 60).state.ended
    submitted_again = world.client.submit
    world.broker.down = False
    submitted_again(["x"], job_id="k")
    world.broker.down = True
    with pytest.raises(BrokerUnavailableError):
        world.client.wait("k", 1)


def test_wait_tells_of_a_store_that_went_away_once_and_goes_on(world: World) -> None:
    submitted(world)
    store, away = world.home / "store", world.home / "away"
    told: list[StoreUnavailableError] = []

    def fail() -> None:
        if world.clock.time > 3 and not away.exists() and not told:
            store.rename(away)
        if world.clock.time > 60 and away.exists():
            away.rename(store)
            world.finish("j")

    world.clock.on_sleep = fail
    assert world.client.wait("j", 600, on_outage=told.append).state is JobState.COMPLETED
    assert len(told) == 1 and "RAMOLE_STORE_URL" in str(told[0])


def test_wait_gives_up_on_a_store_that_stays_away(world: World) -> None:
    submitted(world)
    world.clock.on_sleep = lambda: shutil.rmtree(world.home / "store", ignore_errors=True)
    with pytest.raises(StoreUnavailableError):
        world.client.wait("j")
    assert OUTAGE_SECONDS < world.clock.time < OUTAGE_SECONDS + 5
