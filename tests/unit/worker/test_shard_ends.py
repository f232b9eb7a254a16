"""How a shard ends before all its prompts are answered: cancelled, too slow, with a killer in it,
or by a Redis that is away or lost it."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from kombu.exceptions import OperationalError
from redis import Redis

from ramole_core import keys
from ramole_core.engine.request import Generation
from ramole_core.errors import BrokerUnavailableError, PromptError, StoreUnavailableError
from ramole_core.jobs import Priority, PromptRequest
from ramole_core.settings import Settings
from ramole_core.store.base import get_json
from tests.servers import wait_until
from tests.unit.worker.world import World, make_world, start
from worker import shards
from worker.dispatcher import Dispatcher
from worker.inputs import parse
from worker.journal import PromptRef
from worker.ledger import Claim, ShardRef
from worker.shards import ShardAbandonedError
from worker.tasks import run_shard

MANY: Final[dict[Priority, int]] = {"high": 99, "normal": 99, "low": 99}  # no message is missing


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url)


@pytest.mark.parametrize("beats", [False, True])
def test_what_is_answered_of_a_cancelled_job_is_kept(world: World, beats: bool) -> None:
    """Also when a heartbeat comes between the cancel and the look for it."""
    start(world, "a", "b")
    world.engine.hold = True
    thread = threading.Thread(target=world.run_next)
    thread.start()
    wait_until(lambda: len(world.engine.held) == 2)
    world.engine.held[0].set_result(Generation("kept", "stop", 1, 1, ()))
    world.engine.held[1].set_running_or_notify_cancel()  # it is being decoded
    world.ledger.cancel("j")
    if beats:
        world.leases.beat()
    wait_until(lambda: world.engine.held[1].unwanted)
    world.engine.held[1].set_exception(PromptError("cancelled", "as the engine says it"))
    thread.join(timeout=10)
    kept, cut = world.results("j")
    assert kept.text == "kept" and cut.error is not None
    assert (cut.error.code, cut.error.message) == ("cancelled", "the job was cancelled")


def test_a_shard_is_in_the_journal_and_its_process_not_quiet_while_it_is_prepared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(world, "a", "b")
    world.store.put(keys.death("j", 0, "beside-w0"), b"{}")
    seen: list[tuple[str, bool, list[list[object]]]] = []

    def look(what: str) -> None:
        listed = json.loads(world.journal.read_text())["preparing"]
        seen.append((what, bool(world.quiet.num_preparing), [row[:3] for row in listed]))

    def read(*given: Any) -> list[PromptRequest]:
        look("input")
        return parse(*given)

    monkeypatch.setattr(shards, "parse", read)
    world.engine.on_submit = lambda request: look(str(request.prompt))
    world.run_next()
    listed: list[list[object]] = [["j", "00000", 1]]
    assert seen == [
        ("input", True, listed),
        ("b", True, listed), ("a", False, listed),  # the suspect last: it was tokenised before
    ]  # fmt: skip
    assert json.loads(world.journal.read_text())["preparing"] == []
    assert [r.text for r in world.results("j")] == ["A", "B"]


def test_nothing_is_prepared_while_a_prompt_runs_alone(world: World) -> None:
    start(world, "a")
    world.quiet.acquire()
    thread = threading.Thread(target=world.run_next, daemon=True)
    thread.start()
    wait_until(lambda: world.journal.exists() and '"preparing": [["j"' in world.journal.read_text())
    assert not world.engine.requests
    world.quiet.release()
    thread.join(timeout=10)
    assert world.results("j")[0].text == "A"


def test_an_error_behind_the_last_shard_is_no_error_of_the_shard(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(world, "a")
    monkeypatch.setattr(world.desk, "finalise", lambda job_id: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.run_next()
    assert get_json(world.store, keys.attempt("j", "00000", 1))["error"] is None


def test_a_shard_that_takes_too_long_fails_what_is_left(tmp_path: Path, redis_url: str) -> None:
    world = make_world(tmp_path, redis_url, settings=Settings(shard_seconds=0.0))
    start(world, "a", "b")
    world.engine.hold = True
    world.engine.on_submit = lambda request: setattr(world.engine, "hold", request.prompt != "a")
    world.run_next()
    answered, late = sorted(world.results("j"), key=lambda r: r.text is None)
    assert answered.text and late.error is not None and late.error.code == "shard_deadline"
    assert "RAMOLE_SHARD_SECONDS" in late.error.message


def test_suspects_run_alone_and_the_guilty_not_any_more(world: World) -> None:
    start(world, "a", "b", "c")
    for index, deaths in ((1, ["beside-w0"]), (2, ["beside-w0", "alone-w1", "alone-w2"])):
        for name in deaths:
            world.store.put(keys.death("j", index, name), b"{}")
    world.run_next()
    assert [(r.prompt, r.alone) for r in world.engine.requests] == [("a", False), ("b", True)]
    assert [r.tag for r in world.engine.requests] == [PromptRef("j", 0), PromptRef("j", 1, True)]
    innocent, suspect, guilty = world.results("j")
    assert (innocent.text, suspect.text) == ("A", "B")
    assert guilty.error is not None and guilty.error.code == "worker_lost"
    assert "died 3 times while this prompt ran, 2 times with nobody beside" in guilty.error.message


@pytest.mark.parametrize("how", ["start", "scan"])
def test_a_job_of_which_redis_lost_shards_is_taken_in_anew(
    world: World, redis_url: str, how: str
) -> None:
    start(world, "a", "b", "c", shard_size=1)
    world.run_next()
    Redis.from_url(redis_url).delete("ramole:dispatched")
    if how == "start":
        assert world.desk.start("j")
    else:
        world.desk.scan()
    world.sent.clear()
    world.dispatcher.fill()
    assert [args for _, args in world.sent] == [["j", "00001"], ["j", "00002"]]
    world.run_next()
    world.run_next()
    assert world.store.exists(keys.finished("j"))


def test_a_shard_that_cannot_be_sent_is_an_outage(world: World) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("Redis is away")

    start(world, "a", "b", shard_size=1)
    world.ledger.forget("j")
    world.desk.start("j")
    with pytest.raises(BrokerUnavailableError, match="Redis is away"):
        Dispatcher(world.ledger, away, 8).fill()


def test_a_claim_leaves_before_a_renewal_or_after_it(world: World) -> None:
    claim, left = Claim(ShardRef("j", "00000"), 1, "w1:1", False), threading.Event()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with world.leases.holding(claim):
            entered.set()
            leave.wait(10)
        left.set()

    def renew(claims: list[Claim]) -> list[Claim]:
        assert claims == [claim]
        leave.set()
        assert not left.wait(0.2), "it would be given back now, and this renewal takes it back"
        return []

    threading.Thread(target=hold).start()
    assert entered.wait(10)
    world.ledger.renew = renew  # type: ignore[assignment,method-assign]
    world.leases.beat()
    assert left.wait(10)


def test_three_wipes_of_redis_cost_a_running_shard_nothing(world: World, redis_url: str) -> None:
    start(world, "a", "b")
    world.engine.hold = True
    thread = threading.Thread(target=world.run_next)
    thread.start()
    wait_until(lambda: len(world.engine.held) == 2)
    for _ in range(3):
        Redis.from_url(redis_url).flushall()
        world.desk.scan()
        world.dispatcher.fill()
        world.leases.beat()
    assert world.sent == []
    for future in world.engine.held:
        future.set_result(Generation("kept", "stop", 1, 1, ()))
    thread.join(timeout=10)
    assert [r.text for r in world.results("j")] == ["kept", "kept"]
    assert world.store.exists(keys.finished("j"))
    notes = [entry.key for entry in world.store.entries(keys.attempts("j"))]
    assert notes == [keys.attempt("j", "00000", 1)]


def test_a_drain_after_a_wipe_gives_the_attempt_back(world: World, redis_url: str) -> None:
    start(world, "a")
    world.engine.hold = True

    def wipe(request: object) -> None:
        Redis.from_url(redis_url).flushall()
        world.desk.scan()  # which finds the note
        world.draining.set()

    world.engine.on_submit = wipe
    with pytest.raises(ShardAbandonedError, match="stopping"):
        world.run_next()
    Redis.from_url(redis_url).zadd("ramole:running", {"j/00000": 1})
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 1
    assert list(world.store.entries(keys.attempts("j"))) == []


def test_a_drain_leaves_a_lost_shard_its_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(world, "a")
    world.engine.hold = True
    world.draining.set()
    monkeypatch.setattr(world.leases, "is_lost", lambda claim: True)
    with pytest.raises(ShardAbandonedError, match="ran out"):
        world.run_next()
    assert len(list(world.store.entries(keys.attempts("j")))) == 1


def test_after_an_outage_the_next_round_of_the_reaper_sends_the_shard(
    world: World, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        world.leases.beat()  # one that comes late takes nothing back
        raise StoreUnavailableError("down")

    start(world, "a")
    monkeypatch.setattr(world.runner, "_write", down)
    with pytest.raises(StoreUnavailableError):
        world.run_next()
    world.leases.beat()
    Redis.from_url(redis_url).set("ramole:reaped", 1 << 50)
    assert world.ledger.overdue(MANY, grace_seconds=10) == [ShardRef("j", "00000")]
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 1


def test_a_shard_that_the_job_does_not_have_ends_nothing(world: World) -> None:
    start(world, "a", "b", shard_size=1)
    services: Any = SimpleNamespace(
        ledger=world.ledger, desk=world.desk, shards=world.runner, settings=Settings()
    )
    for _ in range(5):
        run_shard(services, "j", "zzz")
    assert list(world.store.entries(keys.attempts("j"))) == []
    world.run_next()
    assert not world.store.exists(keys.finished("j"))
    world.run_next()
    assert world.store.exists(keys.finished("j"))


def test_a_claim_that_is_lost_takes_nothing_back(world: World, redis_url: str) -> None:
    start(world, "a")
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim)
    redis = Redis.from_url(redis_url)
    with world.leases.holding(claim):
        redis.hset("ramole:owners", claim.ref.member, "w2:1")
        world.leases.beat()
        assert world.leases.is_lost(claim)
        redis.hdel("ramole:owners", claim.ref.member)  # the other has let it go
        world.leases.beat()
        assert redis.hget("ramole:owners", claim.ref.member) is None
