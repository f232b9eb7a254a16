"""How a shard ends before all its prompts are answered: cancelled, too slow, with a killer in it,
or by a Redis that is away or lost it."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from redis import Redis

from ramole_core import keys
from ramole_core.engine.request import Generation
from ramole_core.errors import BrokerUnavailableError, PromptError
from ramole_core.jobs import PromptRequest
from ramole_core.settings import Settings
from ramole_core.store.base import get_json
from tests.servers import wait_until
from tests.unit.worker.world import World, make_world, start
from worker import shards
from worker.dispatcher import Dispatcher
from worker.inputs import parse
from worker.journal import PromptRef


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url)


def test_what_is_answered_of_a_cancelled_job_is_kept(world: World) -> None:
    start(world, "a", "b")
    world.engine.hold = True
    thread = threading.Thread(target=world.run_next)
    thread.start()
    wait_until(lambda: len(world.engine.held) == 2)
    world.engine.held[0].set_result(Generation("kept", "stop", 1, 1, ()))
    world.engine.held[1].set_running_or_notify_cancel()  # it is being decoded
    world.ledger.cancel("j")
    wait_until(lambda: world.engine.held[1].unwanted)
    world.engine.held[1].set_exception(PromptError("cancelled", "as the engine says it"))
    thread.join(timeout=10)
    kept, cut = world.results("j")
    assert kept.text == "kept" and cut.error is not None
    assert (cut.error.code, cut.error.message) == ("cancelled", "the job was cancelled")


def test_a_heartbeat_between_the_cancel_and_the_look_loses_nothing(world: World) -> None:
    start(world, "a", "b")
    world.engine.hold = True
    thread = threading.Thread(target=world.run_next)
    thread.start()
    wait_until(lambda: len(world.engine.held) == 2)
    world.engine.held[0].set_result(Generation("kept", "stop", 1, 1, ()))
    world.engine.held[1].set_running_or_notify_cancel()
    world.ledger.cancel("j")
    world.leases.beat()
    wait_until(lambda: world.engine.held[1].unwanted)
    world.engine.held[1].set_exception(PromptError("cancelled", "as the engine says it"))
    thread.join(timeout=10)
    assert [r.text for r in world.results("j")] == ["kept", None]


def test_a_shard_is_in_the_journal_and_its_process_not_quiet_while_it_is_prepared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(world, "a", "b")
    world.store.put(keys.death("j", 0, "beside-w0"), b"{}")
    seen: list[tuple[str, bool, list[list[object]]]] = []

    def look(what: str) -> None:
        listed = json.loads(world.journal.read_text())["preparing"]
        seen.append((what, world.quiet.locked(), listed))

    def read(*given: Any) -> list[PromptRequest]:
        look("input")
        return parse(*given)

    monkeypatch.setattr(shards, "parse", read)
    world.engine.on_submit = lambda request: look(str(request.prompt))
    world.run_next()
    listed = [["j", "00000", 1, "w1:1"]]
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
