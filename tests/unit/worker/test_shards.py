"""A shard's life: answered in order, done once, let go cleanly, given up at last."""

import json
import threading
from pathlib import Path

import pytest
from redis import ConnectionError as RedisConnectionError

from ramole_core import keys
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.request import Expert, Generation, GenerationFuture, GenerationRequest
from ramole_core.errors import StoreUnavailableError, TooLargeError
from ramole_core.job_files import JobFiles
from ramole_core.jobs import ErrorRecord, Finished, JobState, PromptRequest
from ramole_core.store.directory import DirectoryStore
from tests.servers import wait_until
from tests.unit.worker.world import World, make_world, prompts, put_job, start
from worker.ledger import Claim, ShardRef
from worker.results import result_of
from worker.routing import Routed, seed_of
from worker.shards import DEADLINE, ShardAbandonedError


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url)


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


def test_the_engine_knows_whose_turn_a_jobs_prompts_are(world: World) -> None:
    for priority in ("low", "normal", "high"):
        start(world, priority, job=f"j-{priority}", priority=priority)
        world.run_next()
    found = sorted(world.engine.requests, key=lambda request: request.priority)
    assert [request.prompt for request in found] == ["low", "normal", "high"]
    assert GenerationRequest("a").priority == found[1].priority, "normal unless it says more"


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
    world.store.create(keys.cancelled("j"), b"{}")
    assert not world.desk.start("j")
    _, (job, shard) = world.sent.pop(0)
    assert world.ledger.claim(ShardRef(job, shard), 3) == "cancelled"
    assert not world.store.exists(keys.live("j"))


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


def test_attempts_survive_an_empty_redis(tmp_path: Path, redis_url: str) -> None:
    from redis import Redis

    world = make_world(tmp_path, redis_url, lease_seconds=0)
    start(world, "a")
    world.store.put(keys.attempt("j", "00000", 1), b"{}")
    world.store.put(keys.attempt("j", "00000", 2), b"{}")
    Redis.from_url(redis_url).flushall()
    world.desk.scan()
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 3


def test_a_wiped_redis_repeats_no_finished_shard(world: World, redis_url: str) -> None:
    from redis import Redis

    start(world, "a", "b", "c", shard_size=1)
    world.run_next()
    Redis.from_url(redis_url).flushall()
    world.sent.clear()
    world.desk.scan()
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
    world.desk.scan()
    assert world.store.exists(keys.live("half"))
    assert world.ledger.known(["half"]) == [False]


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


def test_a_bad_option_in_a_stored_prompt_fails_that_prompt_alone(world: World) -> None:
    bad = PromptRequest(index=1, prompt="b", options={"k": 99})
    put_job(world.store, "j", [*prompts("a"), bad, *prompts("c")])
    world.desk.start("j")
    world.dispatcher.fill()
    world.run_next()
    assert [r.error and r.error.code for r in world.results("j")] == [None, "damaged", None]


def test_a_damaged_line_of_a_stored_shard_fails_alone(world: World) -> None:
    start(world, "a", "b")
    key = keys.input_shard("j", "s1", "00000")
    world.store.put(key, b'{"nonsense\n' + world.store.get(key).splitlines()[1] + b"\n")
    world.run_next()
    assert [r.error and r.error.code for r in world.results("j")] == ["damaged", None]


def test_a_text_that_the_encoder_cannot_take_fails_alone(world: World) -> None:
    start(world, "a", "poison", "c")
    world.run_next()
    assert [r.error and r.error.code for r in world.results("j")] == [None, "encoder_failed", None]


def test_the_reason_of_the_last_attempt_stands_in_the_errors(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, redis_url, lease_seconds=0)
    start(world, "a")
    monkeypatch.setattr(world.runner, "_wait", lambda *_: 1 / 0)
    for _ in range(3):
        claim = world.ledger.claim(ShardRef("j", "00000"), 3)
        assert isinstance(claim, Claim)
        with pytest.raises(ZeroDivisionError):
            world.runner.run(claim)
    world.run_next()
    error = world.results("j")[0].error
    assert error is not None and "ZeroDivisionError" in error.message


def test_results_too_large_for_one_write_end_as_errors(tmp_path: Path, redis_url: str) -> None:
    class Small(DirectoryStore):
        def create(self, key: str, data: bytes) -> bool:
            if "/output/" in key and len(data) > 300:
                raise TooLargeError("over the limit")
            return super().create(key, data)

    world = make_world(tmp_path, redis_url, store=Small(tmp_path / "store"))
    start(world, "a" * 1000)
    world.run_next()
    assert [r.error and r.error.code for r in world.results("j")] == ["too_large"]


def test_an_outage_behind_the_engine_is_not_a_failed_prompt(world: World) -> None:
    start(world, "a")
    broken = GenerationFuture()
    broken.set_exception(StoreUnavailableError("the adapter's weights are out of reach"))
    world.engine.submit = lambda request: broken  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        world.run_next()
    assert not world.store.exists(keys.output_shard("j", "00000"))
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 1


def test_a_redis_that_stumbles_while_a_shard_runs_costs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()

    def stumble(*_: object) -> None:
        looked.set()
        raise RedisConnectionError("reset by peer")

    start(world, "a")
    world.engine.hold = True
    monkeypatch.setattr(world.ledger, "is_cancelled", stumble)
    monkeypatch.setattr(world.ledger, "report", stumble)
    thread = threading.Thread(target=world.run_next)
    thread.start()
    assert looked.wait(10)
    world.engine.held[0].set_result(Generation("late", "stop", 1, 1, ()))
    thread.join(timeout=10)
    assert world.results("j")[0].text == "late"


def test_a_shard_finished_during_a_drain_is_written(world: World) -> None:
    start(world, "a")
    world.draining.set()
    world.run_next()
    assert world.results("j")[0].text == "A"


def test_weights_that_overflowed_are_an_error_and_not_a_null() -> None:
    prompt = PromptRequest(index=0, prompt="a")
    request = GenerationRequest(prompt="a", messages=None, experts=(Expert(AdapterRef("x", 1)),))
    future = GenerationFuture()
    future.set_result(Generation("t", "stop", 1, 1, (float("nan"),)))
    result = result_of(Routed(prompt, request), future, DEADLINE)
    assert result.text is None and result.error is not None
    assert result.error.code == "not_a_number"


def test_a_foreign_file_among_the_outputs_ends_no_job_early(world: World) -> None:
    world.store.put(keys.output_shard("j", "00000.part"), b"")
    start(world, "a", "b", shard_size=1)
    world.run_next()
    assert not world.store.exists(keys.finished("j"))
    world.run_next()
    final = Finished.model_validate_json(world.store.get(keys.finished("j")))
    assert (final.num_ok, final.num_failed) == (2, 0)


@pytest.mark.parametrize(
    "name",
    ["output/00000.jsonl/input/x", "output/00000.jsonl/x.jsonl", "attempts/00000/cancelled.json",
     "attempts/00000/1.json/x", "attempts/00000/01.json", "attempts/1.json"],
)  # fmt: skip
def test_a_foreign_object_makes_no_shard_look_done_and_no_attempt_begun(
    world: World, name: str
) -> None:
    world.store.put(keys.job("j") + name, b"{}")
    job = JobFiles(world.store, "j")
    assert not job.finished_shards() and not job.attempts() and not job.begun()
    start(world, "a")
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim) and claim.attempt == 1
