"""A shard's life: answered in order, done once, let go cleanly, given up at last."""

import json
import threading
from pathlib import Path

import pytest

from ramole_core import keys
from ramole_core.errors import NotFoundError, StoreUnavailableError
from ramole_core.jobs import ErrorRecord, Finished, JobState, PromptRequest
from ramole_core.store.directory import DirectoryStore
from tests.servers import wait_until
from tests.unit.worker.world import World, make_world, put_job
from worker.ledger import Claim, ShardRef
from worker.routing import seed_of
from worker.shards import ShardAbandonedError


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url)


def prompts(*texts: str) -> list[PromptRequest]:
    return [PromptRequest(index=i, id=f"p{i}", prompt=text) for i, text in enumerate(texts)]


def start(world: World, *texts: str, job: str = "j", **options: object) -> None:
    put_job(world.store, job, prompts(*texts), **options)
    assert world.desk.start(job)
    world.dispatcher.fill()


def test_a_job_runs_from_manifest_to_final_record(world: World) -> None:
    start(world, "a", "bad", "c", shard_size=2)
    assert [args for _, args in world.sent] == [["j", "00000"], ["j", "00001"]]
    world.run_next()
    assert not world.store.exists(keys.finished("j"))
    world.run_next()
    found = world.results("j") + world.results("j", "00001")
    assert [(r.index, r.id, r.text) for r in found] == [
        (0, "p0", "A"),
        (1, "p1", None),
        (2, "p2", "C"),
    ]
    assert found[1].error == ErrorRecord(code="too_long", message="12 tokens, the limit is 8")
    final = Finished.model_validate_json(world.store.get(keys.finished("j")))
    assert (final.num_ok, final.num_failed) == (2, 1)
    assert final.state() is JobState.COMPLETED_WITH_FAILURES
    assert not world.store.exists(keys.live("j"))
    assert world.ledger.known(["j"]) == [False]


def test_a_line_that_was_bad_at_submission_stays_an_error_in_its_place(world: World) -> None:
    bad = PromptRequest(index=1, error=ErrorRecord(code="bad_line", message="line 2: not JSON"))
    put_job(world.store, "j", [*prompts("a"), bad])
    world.desk.start("j")
    world.dispatcher.fill()
    world.run_next()
    assert [r.error and r.error.code for r in world.results("j")] == [None, "bad_line"]
    assert [r.prompt for r in world.engine.requests] == ["a"]


def test_a_missing_seed_depends_on_job_and_index_alone(world: World) -> None:
    start(world, "a", "b")
    world.run_next()
    assert [r.seed for r in world.engine.requests] == [seed_of("j", 0), seed_of("j", 1)]
    assert seed_of("j", 0) != seed_of("j", 1) != seed_of("k", 1)


def test_an_output_that_exists_is_marked_done_without_running_again(world: World) -> None:
    start(world, "a")
    line = b'{"index":0,"id":"p0","text":"earlier"}\n'
    world.store.put(keys.output_shard("j", "00000"), line)
    world.run_next()
    assert world.engine.requests == []
    assert world.store.exists(keys.finished("j"))
    assert world.store.get(keys.output_shard("j", "00000")) == line


def test_the_first_complete_output_stands(world: World) -> None:
    start(world, "a")
    line = b'{"index":0,"id":"p0","text":"faster"}\n'
    world.engine.on_submit = lambda _: world.store.put(keys.output_shard("j", "00000"), line)
    world.run_next()
    assert world.results("j")[0].text == "faster"


def test_a_drain_gives_shard_and_attempt_back(world: World) -> None:
    start(world, "a")
    world.engine.hold = True
    world.draining.set()
    with pytest.raises(ShardAbandonedError):
        world.run_next()
    assert world.engine.held[0].cancelled()
    assert list(world.store.entries(keys.attempts("j"))) == []
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 1


def test_a_cancelled_job_lets_its_shard_go(world: World) -> None:
    start(world, "a")
    world.engine.hold = True
    world.store.create(keys.cancelled("j"), b"{}")
    assert not world.desk.start("j")
    claim_lost = threading.Event()
    _, (job, shard) = world.sent.pop(0)
    assert world.ledger.claim(ShardRef(job, shard), 3) == "unknown"
    assert not claim_lost.is_set() and not world.store.exists(keys.live("j"))


def test_cancelling_reaches_a_running_shard(world: World) -> None:
    start(world, "a")
    world.engine.hold = True
    errors: list[Exception] = []

    def work() -> None:
        try:
            world.run_next()
        except ShardAbandonedError as e:
            errors.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: bool(world.engine.held))
    world.ledger.cancel("j")
    thread.join(timeout=10)
    assert [str(e) for e in errors] == ["the job was cancelled"]
    assert not world.store.exists(keys.output_shard("j", "00000"))


def test_a_shard_begun_too_often_fails_its_prompts_so_that_the_job_ends(
    tmp_path: Path, redis_url: str
) -> None:
    world = make_world(tmp_path, redis_url, lease_seconds=0)
    start(world, "a", "b")
    for _ in range(3):
        assert isinstance(world.ledger.claim(ShardRef("j", "00000"), 3), Claim)
    world.run_next()
    assert [r.error and r.error.code for r in world.results("j")] == ["worker_lost"] * 2
    assert world.engine.requests == []
    final = Finished.model_validate_json(world.store.get(keys.finished("j")))
    assert final.state() is JobState.FAILED


def test_attempts_survive_an_empty_redis(world: World, redis_url: str) -> None:
    from redis import Redis

    start(world, "a")
    world.store.put(keys.attempt("j", "00000", 1), b"{}")
    world.store.put(keys.attempt("j", "00000", 2), b"{}")
    Redis.from_url(redis_url).flushall()
    assert world.desk.start_all() == 1
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 3


def test_a_wiped_redis_repeats_no_finished_shard(world: World, redis_url: str) -> None:
    from redis import Redis

    start(world, "a", "b", "c", shard_size=1)
    world.run_next()
    Redis.from_url(redis_url).flushall()
    world.sent.clear()
    world.desk.start_all()
    world.dispatcher.fill()
    assert [args[1] for _, args in world.sent] == ["00001", "00002"]
    world.run_next()
    world.run_next()
    final = Finished.model_validate_json(world.store.get(keys.finished("j")))
    assert (final.num_ok, final.num_failed) == (3, 0)


def test_an_outage_of_the_store_costs_no_attempt(tmp_path: Path, redis_url: str) -> None:
    class Broken(DirectoryStore):
        broken = False

        def get(self, key: str) -> bytes:
            if self.broken and "/input/" in key:
                raise StoreUnavailableError("down")
            return super().get(key)

    store = Broken(tmp_path / "store")
    world = make_world(tmp_path, redis_url, store=store)
    start(world, "a")
    store.broken = True
    with pytest.raises(StoreUnavailableError):
        world.run_next()
    store.broken = False
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 1


def test_a_deadline_that_passed_fails_what_has_not_begun(world: World) -> None:
    start(world, "a", deadline="2020-01-01T00:00:00+00:00")
    world.engine.hold = True
    world.run_next()
    assert [r.error and r.error.code for r in world.results("j")] == ["deadline"]


def test_a_live_marker_without_a_manifest_is_left_alone(world: World) -> None:
    world.store.put(keys.live("half"), b"")
    assert world.desk.start_all() == 0
    assert world.store.exists(keys.live("half"))
    with pytest.raises(NotFoundError):
        world.store.get(keys.manifest("half"))


def test_explicit_adapters_and_floors_are_answered_for_each_prompt(world: World) -> None:
    put_job(
        world.store,
        "j",
        [
            PromptRequest(index=0, prompt="x", options={"adapters": []}),
            PromptRequest(index=1, prompt="x", options={"adapters": [{"name": "nobody"}]}),
            PromptRequest(index=2, prompt="x", options={"on_no_adapter": "fail"}),
        ],
    )
    world.desk.start("j")
    world.dispatcher.fill()
    world.run_next()
    codes = [r.error and r.error.code for r in world.results("j")]
    assert codes == [None, "not_found", "no_adapter"]
    assert world.engine.requests[0].gate == "weights" and world.engine.requests[0].experts == ()


def test_every_line_of_an_output_is_one_json_object(world: World) -> None:
    start(world, "line\nbreak\u2028", "b")
    world.run_next()
    lines = world.store.get(keys.output_shard("j", "00000")).split(b"\n")
    assert [json.loads(line)["index"] for line in lines if line] == [0, 1]
