"""Submission: idempotent by id, refused when it differs, and whole or not at all."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from producer.broker import Broker
from producer.job_options import job_options
from producer.readers import Dataset, read_items
from producer.submission import Submission
from ramole_core import keys, messages
from ramole_core.errors import (
    BrokerUnavailableError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from ramole_core.jobs import JobState, Manifest
from ramole_core.store import ObjectStore
from tests.unit.producer.world import Cut, CutStore, FakeBroker, World, announce

PROMPTS = ["one", "two", "three", "four", "five"]


def submit_to(store: Any, job_id: str, broker: Any = None, prompts: list[str] = PROMPTS) -> Any:
    submission = Submission(store, broker or FakeBroker())
    return submission.submit(read_items(prompts), job_id, job_options({"shard_size": 2}))


def test_a_job_is_shards_then_a_marker_then_the_manifest(world: World) -> None:
    job = world.client.submit(PROMPTS, job_id="j", shard_size=2, k=5)
    assert (job.num_prompts, job.num_shards, job.created) == (5, 3, True)
    assert world.broker.sent == [(messages.START_JOB, "j")]
    assert [r.prompt for r in world.requests("j")] == PROMPTS
    manifest = Manifest.model_validate_json(world.store.get(keys.manifest("j")))
    assert manifest.options.k == 5 and manifest.pins.encoder == "enc-1"
    assert world.store.exists(keys.live("j"))


def test_fresh_ids_differ_and_sort_by_time(world: World) -> None:
    first, second = (world.client.submit(["a"]).job_id for _ in range(2))
    assert first != second and first[:15] <= second[:15]


def test_the_same_content_is_the_same_job(world: World) -> None:
    world.client.submit(PROMPTS, job_id="j", deadline="2999-01-01T00:00:00+00:00")
    before = world.keys()
    again = world.client.submit(PROMPTS, job_id="j", deadline="2999-01-02T00:00:00+00:00")
    assert not again.created and again.num_prompts == 5
    assert world.keys() == before
    assert len(world.broker.sent) == 2  # its first message may have been lost


def test_a_live_marker_is_as_young_as_the_submission(world: World) -> None:
    marker = world.home / "store" / keys.live("j")
    world.store.put(keys.live("j"), b"")  # what a cut submission left
    for created in (True, False):
        os.utime(marker, (0, 0))
        assert world.client.submit(PROMPTS, job_id="j").created is created
        assert marker.stat().st_mtime > 0


def test_a_submission_that_lost_shards_meanwhile_makes_no_job(world: World) -> None:
    def stream() -> Iterator[str]:
        yield from map(str, range(10))  # so many that the first is stored
        (submission,) = world.store.children("jobs/j/input/")
        world.store.delete(keys.input_shard("j", submission, "00000"))  # as `jobs prune` does

    with pytest.raises(UnavailableError, match="1 of its 10 shards are gone .* submit it again"):
        world.client.submit(stream(), job_id="j", shard_size=1)
    assert world.keys() == [] and world.broker.sent == []


def test_a_job_that_ended_is_not_started_again(world: World) -> None:
    world.client.submit(PROMPTS, job_id="j")
    world.finish("j")
    world.broker.down = True
    assert not world.client.submit(PROMPTS, job_id="j").created


@pytest.mark.parametrize("change", [{"prompts": ["one"]}, {"options": {"k": 9}}])
def test_other_content_is_refused_and_leaves_nothing(world: World, change: dict[str, Any]) -> None:
    world.client.submit(PROMPTS, job_id="j")
    before = world.keys()
    with pytest.raises(ConflictError, match="--job-id"):
        world.client.submit(change.get("prompts", PROMPTS), job_id="j", **change.get("options", {}))
    assert world.keys() == before


def test_a_lost_race_is_the_winners_job_when_equal_and_refused_when_not(world: World) -> None:
    for job_id, prompts in (("equal", PROMPTS), ("other", ["else"])):
        broker = FakeBroker()
        rival = lambda job_id=job_id: submit_to(world.store, job_id)  # noqa: E731

        class Racing(CutStore):
            """Lets the rival in just before the manifest is created."""

            def __getattr__(self, name: str, rival: Any = rival) -> Any:
                def create(key: str, data: bytes) -> bool:
                    if key.endswith("manifest.json"):
                        rival()
                    return bool(self._store.create(key, data))

                return create if name == "create" else getattr(self._store, name)

        racing: ObjectStore = Racing(world.store, at=0)  # type: ignore[assignment]
        if job_id == "equal":
            assert not submit_to(racing, job_id, broker).created
            assert broker.sent == [(messages.START_JOB, job_id)]
        else:
            with pytest.raises(ConflictError):
                submit_to(racing, job_id, broker, prompts)
        assert len(world.store.children(f"jobs/{job_id}/input/")) == 1
        assert [r.prompt for r in world.requests(job_id)] == PROMPTS


@pytest.mark.parametrize("after", [False, True])
def test_cut_at_any_store_call_there_is_no_job_and_submitting_again_works(
    world: World, after: bool
) -> None:
    counter = CutStore(world.store, at=10**6)
    submit_to(counter, "count")
    for at in range(1, counter.num_calls + 1):
        job_id, broker = f"cut-{after}-{at}", FakeBroker()
        with pytest.raises(Cut):
            submit_to(CutStore(world.store, at, after), job_id, broker)
        assert broker.sent == []
        stored = world.store.exists(keys.manifest(job_id))
        assert not stored or (after and at == counter.num_calls)
        job = submit_to(world.store, job_id, broker)
        assert job.created != stored and broker.sent == [(messages.START_JOB, job_id)]
        assert [r.prompt for r in world.requests(job_id)] == PROMPTS
    ids = {job.job_id for job in world.client.jobs()}
    assert len(ids) == counter.num_calls + 1


def test_strict_stops_at_the_first_bad_line_and_leaves_nothing(world: World, home: Path) -> None:
    path = home / "x.jsonl"
    path.write_text('{"prompt": "a"}\n' * 5 + "{}\n")
    with pytest.raises(InvalidInputError, match=r"x\.jsonl: line 6: missing prompt"):
        world.client.submit(path, job_id="j", strict=True, shard_size=2)
    assert world.keys() == [] and world.broker.sent == []
    job = world.client.submit(path, job_id="j", shard_size=2)
    assert (job.num_prompts, job.num_bad_lines) == (6, 1)


def test_a_dataset_of_bad_lines_only_is_refused_and_leaves_nothing(
    world: World, home: Path
) -> None:
    path = home / "x.jsonl"
    path.write_text('{"prompt": "a", "target": "b"}\n' * 5)
    with pytest.raises(InvalidInputError) as caught:
        world.client.submit(path, job_id="j", shard_size=2)
    assert "line 1: unknown key 'target' (use --prompt-field prompt to" in str(caught.value)
    assert world.keys() == [] and world.broker.sent == []
    assert world.client.submit(Dataset(str(path), prompt_field="prompt")).num_bad_lines == 0
    with path.open("a") as file:
        file.write('{"prompt": "a"}\n')
    job = world.client.submit(path, job_id="j")
    assert job.num_bad_lines == 5
    assert job.first_bad_line is not None and job.first_bad_line.startswith("line 1: unknown key")
    assert world.client.submit(path, job_id="j").first_bad_line == job.first_bad_line


def test_an_empty_dataset_is_refused(world: World) -> None:
    with pytest.raises(InvalidInputError, match="no prompt"):
        world.client.submit([])
    assert world.keys() == []


def test_nothing_is_uploaded_while_redis_is_away(world: World) -> None:
    world.broker.down = True
    with pytest.raises(BrokerUnavailableError):
        world.client.submit(PROMPTS)
    assert world.keys() == []


def test_a_job_whose_message_cannot_be_sent_is_stored_and_says_so(world: World) -> None:
    def lost(message: tuple[str, ...]) -> None:
        raise BrokerUnavailableError("Redis went away")

    world.broker.on_send = lost
    with pytest.raises(BrokerUnavailableError, match="job j is stored .* Redis went away"):
        world.client.submit(PROMPTS, job_id="j")
    world.broker.on_send = lambda message: None
    assert world.client.status("j").state is JobState.QUEUED


def test_a_store_that_no_worker_has_opened_says_what_to_do(home: Path, world: World) -> None:
    world.store.delete(keys.BASE)
    with pytest.raises(UnavailableError, match="ramole up"):
        world.client.submit(PROMPTS)


def test_options_are_checked_at_submission(world: World) -> None:
    for options, reason in (
        ({"k": 0}, "k"),
        ({"kk": 1}, "kk"),
        ({"gate": "mole-plain"}, "router"),
        ({"adapters": ({"name": "nobody"},)}, "nobody"),
    ):
        with pytest.raises(InvalidInputError, match=reason):
            world.client.submit(PROMPTS, **options)
    with pytest.raises(InvalidInputError, match="job id"):
        world.client.submit(PROMPTS, job_id="../x")
    announce(world.store, router="r1")
    job = world.client.submit(PROMPTS, gate="mole-plain")
    manifest = Manifest.model_validate_json(world.store.get(keys.manifest(job.job_id)))
    assert manifest.pins.router == "r1"


def test_no_adapters_at_all_means_the_base_model(world: World) -> None:
    job = world.client.submit(PROMPTS, adapters=())
    text = json.loads(world.store.get(keys.manifest(job.job_id)))
    assert text["options"]["adapters"] == []


def test_a_shard_is_bounded_in_bytes_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.shards.MAX_SHARD_BYTES", 100)
    job = world.client.submit(["x" * 40] * 6)
    assert job.num_shards == 6 and len(world.requests(job.job_id)) == 6


def test_a_missing_embedded_broker_says_ramole_up(world: World) -> None:
    with pytest.raises(BrokerUnavailableError, match="ramole up"):
        Broker(world.client.settings).check()


def test_unknown_jobs_are_not_found(world: World) -> None:
    for call in (world.client.status, world.client.cancel, world.client.retry):
        with pytest.raises(NotFoundError, match="ramole jobs"):
            call("nobody")
