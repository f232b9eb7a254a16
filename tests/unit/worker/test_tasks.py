"""The tasks: none hangs its thread; of the uploads few are in hand, and the others in line."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Reject

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.gate import Limits
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.verdict import read_verdict
from ramole_core.errors import StoreUnavailableError
from ramole_core.settings import Settings
from tests.servers import wait_until
from tests.unit.worker.world import World, make_world
from worker import tasks
from worker.tasks import register_adapter
from worker.uploads import MAX_AT_ONCE, UploadDesk


def upload_desk(world: World, folder: Path) -> UploadDesk:
    base = BaseInfo(name="b", aliases=(), targets={"q": (4, 4)}, context_tokens=8)
    limits = Limits(max_adapter_bytes=1 << 20, max_adapter_rank=8)
    return UploadDesk(world.store, Registry(world.store), base, limits, world.encoders, folder)


def services_of(world: World, desk: UploadDesk, **settings: Any) -> Any:
    return SimpleNamespace(
        ledger=world.ledger,
        uploads=desk,
        settings=Settings.load({}, **settings),
        draining=world.draining,
    )


class Reception:
    """Stands for UploadDesk.receive: notes the upload, is held at the gate, clears its staging."""

    def __init__(self, world: World) -> None:
        self.store = world.store
        self.begun: list[str] = []
        self.gate = threading.Event()

    def receive(self, upload_id: str) -> None:
        self.begun.append(upload_id)
        assert self.gate.wait(20)
        self.store.delete(keys.staging(upload_id) + "upload.json")


def stage(world: World, *upload_ids: str) -> None:
    for upload_id in upload_ids:
        world.store.put(keys.staging(upload_id) + "upload.json", b"{}")


def test_an_upload_that_breaks_its_worker_each_time_is_given_up(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, redis_url)
    upload_file = keys.staging("u-1") + "upload.json"
    world.store.put(upload_file, b"{}")
    desk = upload_desk(world, tmp_path)
    services = services_of(world, desk, max_attempts=2)
    monkeypatch.setattr("worker.uploads.receive", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            register_adapter(services, "u-1")
    monkeypatch.undo()
    register_adapter(services, "u-1")
    verdict = read_verdict(world.store, "u-1")
    assert verdict is not None and verdict.error is not None
    assert verdict.error.reason == "given_up"
    assert not world.store.exists(upload_file)


def test_an_outage_is_no_try_of_an_upload(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, redis_url)

    desk = upload_desk(world, tmp_path)
    services = services_of(world, desk)

    def away(_: str) -> None:
        raise StoreUnavailableError("down")

    monkeypatch.setattr(desk, "receive", away)
    for _ in range(9):
        with pytest.raises(StoreUnavailableError):
            register_adapter(services, "u-1")
    assert world.ledger.count_try("u-1") == 1


def test_only_complete_uploads_with_a_proper_id_wait(tmp_path: Path, redis_url: str) -> None:
    world = make_world(tmp_path, redis_url)
    for key in ("u-1/upload.json", "u-2/adapter_config.json", "a b/upload.json"):
        world.store.put(keys.STAGING + key, b"{}")
    desk = upload_desk(world, tmp_path)
    assert desk.waiting(time.time() + 60) == ["u-1"]
    assert desk.waiting(time.time() - 60) == []


def test_an_upload_that_finds_no_turn_holds_no_thread_and_is_taken_when_one_ends(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, redis_url)
    desk, reception = upload_desk(world, tmp_path), Reception(world)
    monkeypatch.setattr(desk, "receive", reception.receive)
    services = services_of(world, desk)
    ids = [f"u-{i}" for i in range(MAX_AT_ONCE + 3)]
    stage(world, *ids)
    threads = [
        threading.Thread(target=register_adapter, args=(services, upload_id), daemon=True)
        for upload_id in ids[:MAX_AT_ONCE]
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(reception.begun) == MAX_AT_ONCE)
    for upload_id in ids[MAX_AT_ONCE:]:
        register_adapter(services, upload_id)  # comes back at once
    assert len(reception.begun) == MAX_AT_ONCE
    reception.gate.set()
    for thread in threads:
        thread.join(10)
    assert sorted(reception.begun) == ids
    assert [world.ledger.count_try(upload_id) for upload_id in ids] == [2] * len(ids)


def test_a_draining_worker_takes_no_further_upload(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, redis_url)
    desk, reception = upload_desk(world, tmp_path), Reception(world)
    monkeypatch.setattr(desk, "receive", reception.receive)
    stage(world, "u-1", "u-2")
    services = services_of(world, desk)
    thread = threading.Thread(target=register_adapter, args=(services, "u-1"), daemon=True)
    thread.start()
    wait_until(lambda: bool(reception.begun))
    world.draining.set()
    reception.gate.set()
    thread.join(10)
    assert reception.begun == ["u-1"] and desk.waiting(time.time() + 60) == ["u-2"]


def test_an_upload_in_hand_stays_locked_however_long_it_takes(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "UPLOAD_LOCK_SECONDS", 0.3)
    world, other = (make_world(tmp_path, redis_url, name) for name in ("w1", "w2"))
    desk, reception = upload_desk(world, tmp_path), Reception(world)
    monkeypatch.setattr(desk, "receive", reception.receive)
    extended: list[object] = []
    extend = world.ledger.extend_lock
    monkeypatch.setattr(world.ledger, "extend_lock", lambda *words: extended.append(extend(*words)))
    stage(world, "u-1")
    services = services_of(world, desk)
    thread = threading.Thread(target=register_adapter, args=(services, "u-1"), daemon=True)
    thread.start()
    wait_until(lambda: len(extended) > 5)  # it would have run out by now
    assert not other.ledger.try_lock("ramole:lock:upload:u-1", 1)
    reception.gate.set()
    thread.join(10)
    assert other.ledger.try_lock("ramole:lock:upload:u-1", 1)


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), ValueError("bug")])
def test_no_error_of_a_task_leaves_its_thread_hanging(error: BaseException) -> None:
    def body(services: object, job_id: str) -> None:
        raise error

    services = SimpleNamespace(draining=threading.Event())
    task = tasks._guarded(body, services)  # type: ignore[arg-type]
    if isinstance(error, ValueError):
        task("j")  # logged; the lease runs out
    else:
        with pytest.raises(RuntimeError, match=type(error).__name__):
            task("j")


def test_a_draining_worker_hands_messages_back_at_once() -> None:
    services = SimpleNamespace(draining=threading.Event())
    services.draining.set()
    with pytest.raises(Reject) as caught:
        tasks._guarded(lambda *_: None, services)("j")  # type: ignore[arg-type]
    assert caught.value.requeue
