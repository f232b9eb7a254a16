"""The client: states derived from the store, results in order, cancel, retry, search, uploads."""

import re
from pathlib import Path
from typing import Any

import pytest

from producer import replies
from producer.client import Client
from ramole_core import keys, messages
from ramole_core.adapters.log import LogEntry
from ramole_core.errors import (
    AdapterRefusedError,
    BrokerUnavailableError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
)
from ramole_core.job_files import JobFiles
from ramole_core.jobs import JobState
from ramole_core.settings import Settings
from ramole_core.store.base import get_json, to_json
from tests.unit.producer.world import World, write_adapter

PROMPTS = ["a", "bad b", "c", "d", "bad e"]


def submitted(world: World, job_id: str = "j") -> str:
    return world.client.submit(PROMPTS, job_id=job_id, shard_size=2).job_id


def test_a_job_goes_from_queued_over_running_to_its_end(world: World) -> None:
    submitted(world)
    assert world.client.status("j").state is JobState.QUEUED
    world.broker.shards = {"00000": "run 1 0"}
    status = world.client.status("j")
    assert (status.state, status.num_done, status.workers) == (JobState.RUNNING, 1, 1)
    world.finish("j")
    world.broker.down = True  # an ended job needs no Redis
    status = world.client.status("j")
    assert status.state is JobState.COMPLETED_WITH_FAILURES
    assert (status.num_ok, status.num_failed, status.num_done) == (3, 2, 5)
    assert status.num_shards_done == status.num_shards == 3
    assert status.finished_at is not None


def test_counts_survive_a_wiped_redis(world: World) -> None:
    submitted(world)
    world.answer("j", num_shards=2)
    world.broker.shards = {"00000": "done 1 1", "00002": "run 0 1"}
    status = world.client.status("j")
    assert (status.num_ok, status.num_failed, status.num_shards_done) == (3, 2, 2)
    world.broker.shards = {}
    status = world.client.status("j")
    assert (status.state, status.num_ok, status.num_failed) == (JobState.RUNNING, 3, 1)


@pytest.mark.parametrize(
    ("prompts", "state"), [(["a"], JobState.COMPLETED), (["bad"], JobState.FAILED)]
)
def test_the_final_state_follows_the_counts(
    world: World, prompts: list[str], state: JobState
) -> None:
    world.client.submit(prompts, job_id="j")
    world.finish("j")
    assert world.client.status("j").state is state


def test_jobs_lists_what_has_a_manifest_without_redis(world: World) -> None:
    for job_id in ("b", "a", "c"):
        submitted(world, job_id)
    world.finish("a")
    world.answer("c", num_shards=1)
    world.store.put("jobs/no-manifest/input/x/00000.jsonl", b"{}\n")
    world.broker.down = True
    states = {job.job_id: job.state for job in world.client.jobs()}
    assert list(states) == ["b", "a", "c"]
    assert list(states.values()) == ["queued", "completed_with_failures", "running"]


def test_a_job_that_cannot_be_read_is_named_and_hides_no_other(world: World) -> None:
    for job_id in ("damaged", "copied", "cancelled", "good"):
        submitted(world, job_id)
    manifest = get_json(world.store, keys.manifest("damaged"))
    world.store.put(keys.manifest("damaged"), to_json({**manifest, "newer": 1}))
    world.store.put(keys.manifest("copied"), world.store.get(keys.manifest("good")))
    world.store.put(keys.cancelled("cancelled"), b"[" * 200_000)
    errors: list[ConflictError] = []
    assert [job.job_id for job in world.client.jobs(errors.append)] == ["good"]
    said = [str(error) for error in errors]
    assert "is not readable" in said[0] and said[1].startswith(
        "jobs/copied/manifest.json is the manifest of job good"
    )
    assert "is not readable" in said[2] and len(said) == 3
    with pytest.raises(ConflictError, match="of job good"):
        world.client.status("copied")


def test_results_come_in_order_and_partial_ones_only_when_asked(world: World) -> None:
    submitted(world)
    world.answer("j", num_shards=2)
    with pytest.raises(InvalidInputError, match="ramole wait j"):
        list(world.client.results("j"))
    assert [r.index for r in world.client.results("j", partial=True)] == [0, 1, 2, 3]
    world.finish("j")
    world.broker.down = True
    found = list(world.client.results("j"))
    assert [r.text for r in found] == ["A", None, "C", "D", None]


def test_cancel_is_recorded_once_and_keeps_finished_results(world: World) -> None:
    submitted(world)
    world.answer("j", num_shards=1)
    status = world.client.cancel("j")
    assert (status.state, status.num_done) == (JobState.CANCELLED, 2)
    first = get_json(world.store, keys.cancelled("j"))
    assert world.client.cancel("j").state is JobState.CANCELLED
    assert get_json(world.store, keys.cancelled("j")) == first
    assert len(list(world.client.results("j"))) == 2


def test_a_cancelled_job_whose_message_cannot_be_sent_says_that_it_is_cancelled(
    world: World,
) -> None:
    def full(message: tuple[str, ...]) -> None:
        raise BrokerUnavailableError("OOM: used memory > maxmemory")

    submitted(world)
    world.broker.on_send = full
    with pytest.raises(BrokerUnavailableError, match="job j is cancelled .* OOM"):
        world.client.cancel("j")
    assert world.client.status("j").state is JobState.CANCELLED
    assert world.store.exists(keys.cancelling("j")), "workers find it by listing"


def test_an_ended_job_cannot_be_cancelled(world: World) -> None:
    submitted(world)
    world.finish("j")
    with pytest.raises(ConflictError, match="completed_with_failures"):
        world.client.cancel("j")


def test_retry_is_a_new_job_of_the_failed_prompts_with_their_options(world: World) -> None:
    items = [{"prompt": "a"}, {"prompt": "bad b", "id": "B", "k": 7}, {}, {"prompt": "bad c"}]
    deadline = "2999-01-01T00:00:00+00:00"
    world.client.submit(items, job_id="j", shard_size=2, temperature=0.5, deadline=deadline)
    with pytest.raises(InvalidInputError, match="has not ended"):
        world.client.retry("j")
    world.finish("j")
    job = world.client.retry("j")
    assert (job.job_id, job.num_prompts) == ("j-retry-1", 2)
    first, second = world.requests("j-retry-1")
    assert (first.index, first.id, first.prompt, first.options) == (0, "B", "bad b", {"k": 7})
    assert (second.index, second.id) == (1, "j:3")
    options = JobFiles(world.store, "j-retry-1").manifest().options
    assert (options.temperature, options.deadline) == (0.5, None)
    world.finish("j-retry-1")
    assert world.client.retry("j-retry-1").job_id == "j-retry-2"


def test_retry_of_a_cancelled_job_takes_what_has_no_answer(world: World) -> None:
    submitted(world)
    world.answer("j", num_shards=1)
    world.client.cancel("j")
    assert world.client.retry("j").num_prompts == 4
    world.client.submit(["a"], job_id="fine")
    world.finish("fine")
    with pytest.raises(InvalidInputError, match="no failed prompt"):
        world.client.retry("fine")


def test_a_search_is_answered_through_the_store_and_leaves_nothing(world: World) -> None:
    def answer(message: tuple[str, ...]) -> None:
        task, request_id = message
        asked = get_json(world.store, keys.request(request_id))
        assert task == messages.ANSWER and asked["kind"] == "search" and asked["k"] == 2
        assert asked["exclude_adapters"] == ["x"] and asked["allow_adapters"] is None
        found = [{"name": "a", "version": 1, "similarity": 0.5}]
        world.store.put(keys.reply(request_id), to_json({"adapters": found, "error": None}))

    world.broker.on_send = answer
    (match,) = world.client.search("text", k=2, exclude=["x"])
    assert (match.name, match.version, match.similarity) == ("a", 1, 0.5)
    assert world.keys() == []


def test_a_search_without_workers_or_answer_ends(world: World) -> None:
    with pytest.raises(TimedOutError, match="ramole doctor"):
        world.client.search("text")
    assert world.clock.time == pytest.approx(30) and world.keys() == []
    world.broker.workers = []
    with pytest.raises(UnavailableError, match="ramole up"):
        world.client.search("text")


@pytest.mark.parametrize(
    ("code", "kind"),
    [("invalid_input", InvalidInputError), ("store_unavailable", UnavailableError)],
)
def test_a_search_that_fails_says_why(world: World, code: str, kind: type[Exception]) -> None:
    error = {"code": code, "message": "k: too large"}
    world.broker.on_send = lambda m: world.store.put(keys.reply(m[1]), to_json({"error": error}))
    with pytest.raises(kind, match="k: too large"):
        world.client.search("text")


def verdict(world: World, **fields: object) -> None:
    """Makes the broker answer every upload with a verdict."""
    reply = {"status": "accepted", "name": "n", "version": 1, "warnings": [], "error": None}
    data = to_json(reply | fields)
    world.broker.on_send = lambda m: world.store.put(keys.reply(m[1]), data)


def test_an_upload_is_staged_and_waits_for_the_verdict(world: World, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    verdict(world, version=3, warnings=["odd"])
    found = world.client.upload_adapter(folder, "n", ["sample"])
    assert (found.status, found.version, found.warnings) == ("accepted", 3, ("odd",))
    ((task, upload_id),) = world.broker.sent
    assert task == messages.REGISTER_ADAPTER and upload_id == found.upload_id
    assert world.store.exists(keys.staging(upload_id) + "upload.json")


def test_an_upload_may_be_left_to_itself_and_asked_for_later(world: World, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    world.broker.workers = []
    found = world.client.upload_adapter(folder, "n", ["sample"], wait=False)
    assert found.status == "staged" and found.version is None
    reply = {"status": "unchanged", "name": "n", "version": 2, "warnings": [], "error": None}
    world.store.put(keys.reply(found.upload_id), to_json(reply))
    assert world.client.upload_verdict(found).status == "unchanged"


def test_a_bad_adapter_is_refused_here_before_anything_is_stored(
    world: World, tmp_path: Path
) -> None:
    good = write_adapter(tmp_path / "good")
    for folder, name, samples in (
        (write_adapter(tmp_path / "dora", use_dora=True), "n", ["s"]),
        (good, "../n", ["s"]),
        (good, "n", []),
    ):
        with pytest.raises(AdapterRefusedError):
            world.client.upload_adapter(folder, name, samples)
    for folder, samples in ((tmp_path / "missing", ["s"]), (good, tmp_path / "missing")):
        with pytest.raises(NotFoundError, match="missing: no such file or folder"):
            world.client.upload_adapter(folder, "n", samples)
    assert world.keys() == [] and world.broker.sent == []


def test_a_workers_refusal_keeps_its_reason(world: World, tmp_path: Path) -> None:
    error = {"code": "adapter_refused", "reason": "all_zero", "message": "B is zero"}
    verdict(world, status="refused", version=None, error=error)
    with pytest.raises(AdapterRefusedError, match="B is zero") as caught:
        world.client.upload_adapter(write_adapter(tmp_path / "a"), "n", ["s"])
    assert caught.value.reason == "all_zero"


def test_an_upload_without_workers_or_redis_is_refused_at_once(
    world: World, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a")
    world.broker.workers = []
    with pytest.raises(UnavailableError, match="ramole up"):
        world.client.upload_adapter(folder, "n", ["s"])
    world.broker.down = True
    with pytest.raises(BrokerUnavailableError):
        world.client.upload_adapter(folder, "n", ["s"], wait=False)
    assert world.keys() == []


def registered(world: World, number: int, name: str, version: int, owner: str) -> None:
    entry = LogEntry(
        op="add",
        name=name,
        version=version,
        at="t",
        sha256="s",
        owner=owner,
        upload_id=f"u{number}",
    )
    world.store.put(keys.registry_entry(number), entry.model_dump_json().encode())


def test_adapters_are_listed_and_removed_without_redis(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.adapters._user", lambda: "me")
    world.broker.down = True
    registered(world, 1, "a", 1, "me")
    registered(world, 2, "a", 2, "me")
    registered(world, 3, "b", 1, "other")
    assert [(r.name, r.version) for r in world.client.adapters()] == [("a", 2), ("b", 1)]
    assert [str(ref) for ref in world.client.remove_adapter("a", 2)] == ["a@2"]
    assert [(r.name, r.version) for r in world.client.adapters()] == [("a", 1), ("b", 1)]
    rows = world.client.adapters(with_removed=True)
    assert [(r.version, r.active, r.removed) for r in rows if r.name == "a"] == [
        (1, True, False),
        (2, False, True),
    ]
    assert world.client.remove_adapter("a", 2) == []
    assert [str(ref) for ref in world.client.remove_adapter("a")] == ["a@1"]
    with pytest.raises(AdapterRefusedError, match="another owner"):
        world.client.remove_adapter("b")
    assert [str(ref) for ref in world.client.remove_adapter("b", any_owner=True)] == ["b@1"]
    for call in (world.client.adapter, world.client.remove_adapter):
        with pytest.raises(NotFoundError):
            call("nobody")


def test_explicit_adapters_are_known_ones(world: World) -> None:
    registered(world, 1, "a", 1, "me")
    world.client.submit(["x"], adapters=({"name": "a", "version": 1, "weight": 0.5},))
    with pytest.raises(InvalidInputError, match="a@2"):
        world.client.submit(["x"], adapters=({"name": "a", "version": 2},))
    with pytest.raises(InvalidInputError, match="a@1 is given twice"):
        world.client.submit(["x"], adapters=({"name": "a"}, {"name": "a", "version": 1}))


def test_allowed_adapters_are_known_ones(world: World) -> None:
    registered(world, 1, "a", 1, "me")
    world.client.submit(["x"], allow_adapters=["a"], exclude_adapters=["gone"])
    for call in (
        lambda: world.client.submit(["x"], allow_adapters=["a", "nope"]),
        lambda: world.client.search("x", allow=["a", "nope"]),
    ):
        with pytest.raises(InvalidInputError, match="'nope' does not exist.*adapters list"):
            call()


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"text": ""}, "TEXT: 1 to 1048576 characters, not 0"),
        ({"text": "x", "k": 0}, "--k: 1 to 1000, not 0"),
        ({"text": "x", "k": 5000}, "--k: 1 to 1000, not 5000"),
        ({"text": "x", "exclude": ["a b"]}, "--exclude-adapter 'a b': use "),
        ({"text": "x", "allow": ["../a"]}, "--allow-adapter '../a': use "),
    ],
)
def test_a_search_is_checked_before_a_worker_is_asked(
    world: World, question: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(said)):
        world.client.search(**question)
    assert world.broker.sent == []


def test_a_search_that_passes_here_passes_the_worker() -> None:
    from worker.requests import SearchRequest

    for text, k in (("x" * replies.MAX_SEARCH_CHARS, 1), ("x", replies.MAX_SEARCH_K)):
        SearchRequest(kind="search", text=text, k=k)


def test_a_missing_data_folder_is_named_and_not_made(tmp_path: Path) -> None:
    home = tmp_path / "nope" / "x"
    for call in (Client.jobs, lambda client: client.submit(["x"])):
        with pytest.raises(UnavailableError, match=f"{home} does not exist.*ramole up"):
            call(Client(Settings.load({}, home=home)))
    store = tmp_path / "elsewhere" / "store"  # a store of its own needs no data folder
    client = Client(Settings.load({}, home=home, store_url=str(store)))
    assert client.jobs() == [] and list(tmp_path.iterdir()) == []
