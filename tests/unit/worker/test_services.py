"""The parts around the shards: encoder service, leases, reaper, requests, announcements."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ramole_core import keys, messages
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import (
    ConfigError,
    NotFoundError,
    PromptError,
    RamoleError,
    StoreUnavailableError,
)
from ramole_core.jobs import PromptRequest
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from tests.servers import wait_until
from tests.unit.worker.world import FakeEncoder, World, fake_embed, make_world, put_job
from worker.announce import announce_base
from worker.deaths import Coroner
from worker.encoding import EncoderService, _Call, embedding_for
from worker.housekeeping import Housekeeper
from worker.ledger import Claim, ShardRef
from worker.quiet import Quiet
from worker.requests import answer
from worker.services import _make_progress


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


def encode_in_threads(service: EncoderService, calls: list[list[str]]) -> list[Any]:
    answers: list[Any] = [None] * len(calls)

    def work(i: int) -> None:
        try:
            answers[i] = service.encode(calls[i])
        except RamoleError as e:
            answers[i] = e

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return answers


def test_texts_of_many_callers_are_embedded_together_and_each_gets_its_own(
    encoder: FakeEncoder,
) -> None:
    service = EncoderService(encoder)  # type: ignore[arg-type]
    encoder.gate.clear()
    service.start()
    first = threading.Thread(target=service.encode, args=(["first"],))
    first.start()
    encoder.entered.wait(10)
    calls = [["a", "b"], ["c"], []]
    threading.Timer(0.05, encoder.gate.set).start()
    answers = encode_in_threads(service, calls)
    first.join(timeout=10)
    service.stop()
    for call, found in zip(calls, answers, strict=True):
        assert np.array_equal(found, fake_embed(call))
    assert len(encoder.calls) <= 3


def test_a_text_that_breaks_the_encoder_fails_its_own_call_only(encoder: FakeEncoder) -> None:
    service = EncoderService(encoder)  # type: ignore[arg-type]
    calls = [["good"], ["poison"], ["also good"]]
    service._queue.put(_Call(["queued"], threading_future(), None))
    service.start()
    answers = encode_in_threads(service, calls)
    assert isinstance(answers[1], PromptError) and answers[1].code == "encoder_failed"
    assert np.array_equal(answers[0], fake_embed(["good"]))
    assert np.array_equal(service.encode(["still there"]), fake_embed(["still there"]))
    service.stop()


def test_a_panic_fails_its_call_and_leaves_the_service_alive(encoder: FakeEncoder) -> None:
    class Panic(BaseException):
        pass

    def panic(texts: list[str]) -> Any:
        raise Panic("in Rust code")

    well, encoder.encode = encoder.encode, panic  # type: ignore[method-assign]
    service = EncoderService(encoder)  # type: ignore[arg-type]
    service._queue.put(_Call(["a"], threading_future(), None))
    service._queue.put(_Call(["b"], failed := threading_future(), None))
    service.start()
    with pytest.raises(PromptError, match="Panic"):
        failed.result(10)
    encoder.encode = well  # type: ignore[method-assign]
    assert np.array_equal(service.encode(["c"]), fake_embed(["c"]))
    service.stop()


def test_shards_begun_before_are_embedded_on_their_own(encoder: FakeEncoder) -> None:
    service = EncoderService(encoder)  # type: ignore[arg-type]
    futures = []
    for text, attempt in (("a", 1), ("b", 2), ("c", 1), ("d", 3), ("e", 0)):
        owner = Claim(ShardRef("j", text), attempt, "w:1", False) if attempt else None
        futures.append(threading_future())
        service._queue.put(_Call([text], futures[-1], owner))
    service.start()
    for text, future in zip("abcde", futures, strict=True):
        assert np.array_equal(future.result(10), fake_embed([text]))
    service.stop()
    assert encoder.calls == [["a", "c", "e"], ["b"], ["d"]]


def threading_future() -> Any:
    from concurrent.futures import Future

    return Future()


def test_a_stopped_encoder_leaves_nobody_waiting(encoder: FakeEncoder) -> None:
    service = EncoderService(encoder)  # type: ignore[arg-type]
    service.start()
    service.stop()
    with pytest.raises(RamoleError, match="stopping"):
        service.encode(["late"])


def test_leases_are_renewed_while_the_engine_moves_and_a_stuck_process_ends(
    tmp_path: Path, redis_url: str
) -> None:
    world = make_world(tmp_path, redis_url, lease_seconds=30)
    put_job(world.store, "j", [PromptRequest(index=0, prompt="a")])
    world.desk.start("j")
    claim = world.ledger.claim(ShardRef("j", "00000"), 3)
    assert isinstance(claim, Claim)
    alive, ended = True, []
    world.leases._is_alive = lambda: alive
    world.leases._on_stuck = lambda: ended.append(True)
    with world.leases.holding(claim):
        world.leases.beat()
        assert not world.leases.is_lost(claim)
        alive = False
        before = world.ledger._redis.zscore("ramole:running", claim.ref.member)
        world.leases.beat()
        assert world.ledger._redis.zscore("ramole:running", claim.ref.member) == before
        assert ended == [True]
        alive = True
        world.ledger.cancel("j")
        world.leases.beat()
        assert world.leases.is_lost(claim)
    assert not world.leases.is_lost(claim)


def test_whatever_goes_wrong_in_a_beat_there_is_a_next_one(
    tmp_path: Path,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = make_world(tmp_path, redis_url, lease_seconds=0.03)
    beats: list[object] = []

    def renew(claims: object) -> list[ShardRef]:
        beats.append(claims)
        if len(beats) == 1:
            raise RuntimeError("anything that is no RedisError")
        return []

    monkeypatch.setattr(world.ledger, "renew", renew)
    world.leases.start()
    wait_until(lambda: len(beats) > 1)
    world.leases.stop()
    assert "anything that is no RedisError" in caplog.text


def test_an_engine_that_has_ended_makes_no_progress(world: World) -> None:
    engine = SimpleNamespace(ended="", progress_at=time.monotonic())
    assert _make_progress(engine, world.encoders)  # type: ignore[arg-type]
    engine.ended = "the device is lost"
    assert not _make_progress(engine, world.encoders)  # type: ignore[arg-type]


class FakeUploads:
    def __init__(self) -> None:
        self.ids: list[str] = []

    def waiting(self, before_seconds: float) -> list[str]:
        return self.ids


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url)


def housekeeper(world: World, uploads: FakeUploads, sent: list[Any]) -> Housekeeper:
    settings = Settings.load({}, reaper_seconds=0.1)
    return Housekeeper(
        world.ledger,
        world.dispatcher,
        world.desk,
        uploads,  # type: ignore[arg-type]
        Registry(world.store),
        world.encoders,
        Coroner(Path("no-such-folder"), world.store, world.ledger.pardon),
        lambda name, args, queue: sent.append((name, args, queue)),
        settings,
    )


def test_the_reaper_takes_in_jobs_whose_message_was_lost(world: World) -> None:
    put_job(world.store, "j", [PromptRequest(index=0, prompt="a")])
    housekeeper(world, FakeUploads(), []).reap()
    assert [args for _, args in world.sent] == [["j", "00000"]]


def test_the_reaper_ends_a_job_whose_last_worker_died_before_the_final_record(
    world: World,
) -> None:
    put_job(world.store, "j", [PromptRequest(index=0, prompt="a")])
    world.desk.start("j")
    world.store.put(keys.output_shard("j", "00000"), b'{"index":0,"text":"x"}\n')
    assert world.ledger.finish(ShardRef("j", "00000"), 1, 0)  # and then the worker dies
    housekeeper(world, FakeUploads(), []).reap()
    assert world.store.exists(keys.finished("j"))


def test_the_reaper_sends_uploads_again(world: World) -> None:
    uploads, sent = FakeUploads(), []
    uploads.ids = ["u-1"]
    housekeeper(world, uploads, sent).reap()
    assert sent == [(messages.REGISTER_ADAPTER, ["u-1"], messages.CONTROL_QUEUE)]


def test_only_one_worker_reaps_at_a_time(world: World) -> None:
    put_job(world.store, "j", [PromptRequest(index=0, prompt="a")])
    world.ledger.try_lock("ramole:lock:reaper", 60)
    housekeeper(world, FakeUploads(), []).reap()
    assert world.sent == []


def test_a_failing_round_is_survived(world: World) -> None:
    keeper = housekeeper(world, FakeUploads(), [])
    rounds: list[float] = []

    def broken() -> None:
        rounds.append(time.monotonic())
        raise [OSError("disk"), ValueError("bug"), NotFoundError("x")][len(rounds) % 3]

    thread = threading.Thread(target=keeper._every, args=(0.01, broken))
    thread.start()
    wait_until(lambda: len(rounds) >= 4)
    keeper._stop.set()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_a_search_is_answered_and_a_bad_one_gets_its_error(world: World) -> None:
    encoders, store = world.encoders, world.store
    store.put(keys.request("r1"), json.dumps({"kind": "search", "text": "abc"}).encode())
    answer("r1", store, encoders)
    assert json.loads(store.get(keys.reply("r1"))) == {"adapters": [], "error": None}
    store.put(keys.request("r2"), b'{"kind": "shell", "text": "rm"}')
    answer("r2", store, encoders)
    assert json.loads(store.get(keys.reply("r2")))["error"]["code"] == "invalid_input"
    answer("gone", store, encoders)
    assert not store.exists(keys.reply("gone"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailableError("down"), "store_unavailable"),
        (NotFoundError("its vector is gone"), "not_found"),
        (RuntimeError("bug"), "error"),
    ],
)
def test_a_search_that_fails_says_so_as_nobody_sends_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def search(queries: object) -> None:
        raise error

    monkeypatch.setattr(world.encoders, "search", search)
    world.store.put(keys.request("r1"), b'{"kind": "search", "text": "abc"}')
    answer("r1", world.store, world.encoders)
    found = json.loads(world.store.get(keys.reply("r1")))["error"]
    assert found["code"] == code and str(error) in found["message"]


def base(name: str = "b", width: int = 4, aliases: tuple[str, ...] = ()) -> BaseInfo:
    return BaseInfo(name=name, aliases=aliases, targets={"q": (width, 4)}, context_tokens=8)


def test_a_store_keeps_the_base_of_its_first_worker(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    announce_base(store, base())
    announce_base(store, base(aliases=("other",)))
    assert BaseInfo.model_validate_json(store.get(keys.BASE)).aliases == ("other",)
    for other in (base("c"), base(width=8)):
        with pytest.raises(ConfigError, match="RAMOLE_MODEL"):
            announce_base(store, other)


def test_adapters_that_have_no_vector_yet_are_described_from_their_samples(world: World) -> None:
    ref = AdapterRef("a", 1)
    world.store.put(keys.adapter(ref) + "samples.jsonl", b'"one"\n"two"\n')
    with world.encoders.active() as serving:
        vector = serving.shelf.vector(ref)
        assert np.array_equal(vector, serving.shelf.vector(ref))
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6
    assert world.store.exists(keys.vector("fake", ref))


def test_a_broken_job_keeps_no_other_job_and_no_upload_waiting(world: World) -> None:
    put_job(world.store, "a-gone", [PromptRequest(index=0, prompt="a")])
    world.desk.start("a-gone")
    world.ledger.finish(ShardRef("a-gone", "00000"), 1, 0)
    world.store.delete(keys.manifest("a-gone"))
    put_job(world.store, "b-spoilt", [PromptRequest(index=0, prompt="a")])
    world.store.put(keys.manifest("b-spoilt"), b"{}")
    put_job(world.store, "c-well", [PromptRequest(index=0, prompt="a")])
    uploads, sent = FakeUploads(), []
    uploads.ids = ["u-1"]
    housekeeper(world, uploads, sent).reap()
    assert [args for _, args in world.sent] == [["c-well", "00000"]]
    assert [args for _, args, _ in sent] == [["u-1"]]
    assert world.ledger.finalising() == []


def test_a_job_that_cannot_be_read_is_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    put_job(world.store, "j", [PromptRequest(index=0, prompt="a")])
    world.store.put(keys.manifest("j"), b'{"from": "a newer version"}')
    for _ in range(3):
        world.desk.scan()
    assert caplog.text.count("the job cannot be read") == 1


def test_a_cancellation_whose_message_was_lost_is_found(world: World) -> None:
    put_job(world.store, "j", [PromptRequest(index=0, prompt="a")])
    world.desk.start("j")
    world.store.put(keys.cancelling("j"), b"")
    world.store.create(keys.cancelled("j"), b"{}")
    housekeeper(world, FakeUploads(), []).reap()
    assert world.sent == [] and world.ledger.is_cancelled("j")
    assert not world.store.exists(keys.live("j")) and not world.store.exists(keys.cancelling("j"))


def test_whose_texts_are_embedded_is_known_before_and_over_after() -> None:
    encoder, seen = FakeEncoder(), []
    service = EncoderService(
        encoder,  # type: ignore[arg-type]
        on_batch=lambda version, claims: seen.append((version, set(claims), len(encoder.calls))),
    )
    service.start()
    claim = Claim(ShardRef("j", "00000"), 1, "w:1", False)
    with embedding_for(claim):
        service.encode(["a"])
    service.encode(["b"])
    service.stop()
    assert seen == [
        ("fake", {claim}, 0), ("fake", set(), 1), ("fake", set(), 1), ("fake", set(), 2)
    ]  # fmt: skip


def test_nothing_is_embedded_while_somebody_wants_quiet() -> None:
    encoder, quiet = FakeEncoder(), Quiet()
    service = EncoderService(encoder, quiet)  # type: ignore[arg-type]
    service.start()
    quiet.acquire()
    thread = threading.Thread(target=service.encode, args=(["a"],))
    thread.start()
    wait_until(lambda: not service.idle)
    before = service.progress_at
    wait_until(lambda: service.progress_at > before)  # which is no standstill
    assert encoder.calls == []
    quiet.release()
    thread.join(10)
    assert encoder.calls == [["a"]]
    service.stop()
