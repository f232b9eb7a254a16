"""Encoder versions of one worker: switched whole, kept for jobs that pin them, let go at last."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.adapters.log import LogEntry
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import (
    ConfigError,
    InvalidInputError,
    NotFoundError,
    PromptError,
    RamoleError,
    StoreUnavailableError,
    UnavailableError,
)
from ramole_core.jobs import PromptRequest
from ramole_core.retrieval.encoder import Vectors
from ramole_core.retrieval.encoder_store import store_encoder
from ramole_core.retrieval.retriever import Query
from ramole_core.retrieval.vectors import samples_key
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from tests.tiny_encoder import encoder_card, letter_model
from tests.unit.worker.world import FakeEncoder, fake_embed, make_world, put_job
from worker.encoder_source import EncoderSource, load_encoder_in_use
from worker.encoders import RETRY_SECONDS, Encoders


class Backwards(FakeEncoder):
    """Another vector for every text: no vector of `fake` is right for it."""

    def encode(self, texts: list[str]) -> Vectors:
        return np.ascontiguousarray(super().encode(texts)[:, ::-1])


class Setting:
    """A store with adapters `a` and `b`, and the encoders of one worker over it."""

    def __init__(self, folder: Path) -> None:
        self.store = DirectoryStore(folder)
        self.registry = Registry(self.store)
        for name in "ab":
            self.add(name)
        self.log = Activations(self.store)
        self.log.start("fake")
        self.first = FakeEncoder("fake")
        self.known: dict[str, FakeEncoder | RamoleError] = {}
        self.loads: list[str] = []
        self.time = 0.0
        self.draining = threading.Event()
        self.encoders = Encoders(
            self.store,
            self.registry,
            self.log,
            self.load,  # type: ignore[arg-type]
            self.first,  # type: ignore[arg-type]
            self.draining,
            now=lambda: self.time,
        )

    def add(self, name: str) -> None:
        ref = AdapterRef(name, 1)
        self.store.put(samples_key(ref), f'"{name * 4}"\n'.encode())
        entry = LogEntry(op="add", name=name, version=1, at="2026-01-01T00:00:00+00:00")
        sha = {"sha256": name, "owner": "o", "upload_id": f"u-{name}"}
        self.registry.add(entry.model_copy(update=sha))

    def load(self, version: str) -> FakeEncoder:
        self.loads.append(version)
        found = self.known.get(version, NotFoundError("it is not in the store"))
        if isinstance(found, RamoleError):
            raise found
        return found

    def serving(self, version: str) -> float:
        """Uses a version; returns its tau."""
        with self.encoders.get(version) as serving:
            return serving.tau

    def in_use(self) -> str:
        with self.encoders.active() as serving:
            return serving.service.version


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    found = Setting(tmp_path)
    yield found
    for encoder in [found.first, *found.known.values()]:
        if isinstance(encoder, FakeEncoder):
            encoder.gate.set()
    found.encoders.stop()


def best(setting: Setting, text: str) -> str:
    return setting.encoders.search([Query(text, 1)])[0][0].ref.name


def test_searches_use_the_old_version_until_the_new_one_has_its_index(setting: Setting) -> None:
    new = setting.known["e1"] = Backwards("e1")
    new.gate.clear()
    setting.log.use("encoder", "e1")
    switch = threading.Thread(target=setting.encoders.refresh)
    switch.start()
    assert new.entered.wait(10)  # at its first vector
    assert setting.in_use() == "fake" and best(setting, "aaa") == "a"
    new.gate.set()
    switch.join(10)
    assert setting.in_use() == "e1" and best(setting, "aaa") == "a"
    assert new.calls == [["aaaa"], ["bbbb"], ["aaa"]]  # vectors first, then the search


def test_vectors_of_two_versions_never_mix(setting: Setting) -> None:
    setting.known["e1"] = Backwards("e1")
    best(setting, "aaa")
    setting.log.use("encoder", "e1")
    setting.encoders.refresh()
    best(setting, "aaa")
    old, new = (setting.store.get(keys.vector(v, AdapterRef("a", 1))) for v in ("fake", "e1"))
    assert old != new and len(old) == len(new)
    for version in ("fake", "e1"):
        with setting.encoders.get(version) as serving:
            (match,) = serving.retriever.search([Query("aaaa", 1)])[0]
            assert match.similarity == pytest.approx(1.0)


def test_uploads_are_described_with_the_version_in_use(setting: Setting) -> None:
    setting.known["e1"] = Backwards("e1")
    ref = AdapterRef("new", 1)
    setting.encoders.describe(ref, ["x"])
    setting.log.use("encoder", "e1")
    setting.encoders.refresh()
    assert not setting.store.exists(keys.vector("e1", ref))
    setting.encoders.describe(ref, ["x"])
    assert setting.store.exists(keys.vector("e1", ref))


def test_an_older_version_goes_on_answering_who_pins_it(setting: Setting) -> None:
    setting.known["e1"] = FakeEncoder("e1", tau=0.2)
    setting.log.use("encoder", "e1")
    setting.encoders.refresh()
    assert (setting.serving("fake"), setting.serving("e1")) == (0.05, 0.2)
    setting.log.rollback("encoder")
    setting.encoders.refresh()
    assert setting.in_use() == "fake" and setting.loads == ["e1"]


def test_a_version_that_does_not_load_leaves_the_old_one_and_is_logged_once(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.known["e1"] = InvalidInputError("its files differ from its card")
    setting.log.use("encoder", "e1")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            setting.encoders.refresh()
            setting.time += RETRY_SECONDS + 1
    assert setting.in_use() == "fake" and best(setting, "aaa") == "a"
    assert setting.loads == ["e1"] * 3
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1 and "e1" in errors[0] and "differ" in errors[0]
    setting.known["e1"] = FakeEncoder("e1")
    setting.encoders.refresh()
    assert setting.in_use() == "e1"


def test_a_failure_is_remembered_for_a_while_and_an_outage_is_not(setting: Setting) -> None:
    for _ in range(5):
        with pytest.raises(PromptError, match="gone: it is not in the store") as caught:
            setting.serving("gone")
        assert caught.value.code == "encoder_unavailable"
    assert setting.loads == ["gone"]
    setting.known["e1"] = StoreUnavailableError("the store is away")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            setting.serving("e1")
    setting.known["e1"] = FakeEncoder("e1")
    assert setting.serving("e1") == 0.05


def test_many_who_ask_at_once_load_and_describe_once(setting: Setting) -> None:
    new = setting.known["e1"] = FakeEncoder("e1")
    new.gate.clear()
    threads = [threading.Thread(target=setting.serving, args=("e1",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    new.entered.wait(10)
    new.gate.set()
    for thread in threads:
        thread.join(10)
    assert setting.loads == ["e1"] and new.calls == [["aaaa"], ["bbbb"]]


def test_beyond_the_bound_the_version_unused_for_longest_is_let_go(setting: Setting) -> None:
    setting.known |= {f"e{n}": FakeEncoder(f"e{n}") for n in range(1, 4)}
    for version in ("e1", "e2", "e1", "e3"):
        setting.serving(version)
    assert setting.loads == ["e1", "e2", "e3"]
    setting.serving("e1")  # was used after e2, so it is still here
    setting.serving("fake")  # in use: never let go
    assert setting.loads == ["e1", "e2", "e3"]
    with setting.encoders.get("e1") as serving:
        service = serving.service
    for version in ("e2", "e3"):
        setting.serving(version)
    assert setting.loads[3:] == ["e2", "e3"]
    with pytest.raises(UnavailableError):
        service.encode(["its thread has ended"])


def test_a_version_that_somebody_uses_is_never_let_go(setting: Setting) -> None:
    setting.known |= {f"e{n}": FakeEncoder(f"e{n}") for n in range(1, 5)}
    with setting.encoders.get("e1") as held:
        for version in ("e2", "e3", "e4"):
            setting.serving(version)
        assert np.array_equal(held.service.encode(["abc"]), fake_embed(["abc"]))
    setting.serving("e1")
    assert setting.loads == ["e1", "e2", "e3", "e4"]


def test_the_watchdog_looks_at_every_version(setting: Setting) -> None:
    slow = setting.known["e1"] = FakeEncoder("e1")
    setting.serving("e1")
    later = time.monotonic() + 60
    assert setting.encoders.have_moved_since(later)  # all idle
    slow.entered.clear()
    slow.gate.clear()
    with setting.encoders.get("e1") as held:
        call = threading.Thread(target=held.service.encode, args=(["x"],))
        call.start()
        assert slow.entered.wait(10)
        assert not setting.encoders.have_moved_since(later)
        assert setting.encoders.have_moved_since(later - 120)
        slow.gate.set()
        call.join(10)


def test_a_stopping_worker_does_not_finish_an_index(setting: Setting) -> None:
    setting.known["e1"] = FakeEncoder("e1")
    setting.draining.set()
    with pytest.raises(UnavailableError, match="stopping"):
        setting.serving("e1")


# Jobs


def start_job(world: Any, job_id: str, encoder: str, prompts: list[dict[str, Any]]) -> None:
    requests = [PromptRequest(index=i, **fields) for i, fields in enumerate(prompts)]
    manifest = put_job(world.store, job_id, requests)
    pins = manifest.pins.model_copy(update={"encoder": encoder, "registry": 2})
    changed = manifest.model_copy(update={"pins": pins})
    world.store.put(keys.manifest(job_id), changed.model_dump_json().encode())
    assert world.desk.start(job_id)
    world.dispatcher.fill()


def test_each_job_is_answered_with_the_encoder_it_pins(
    setting: Setting, tmp_path: Path, redis_url: str
) -> None:
    setting.known["e1"] = Backwards("e1", tau=0.2)
    world = make_world(tmp_path, redis_url, store=setting.store, encoders=setting.encoders)
    for job_id, encoder, tau in (
        ("old", "fake", 0.05),
        ("new", "e1", 0.2),
        ("again", "fake", 0.05),
    ):
        start_job(world, job_id, encoder, [{"prompt": "aaa"}])
        world.run_next()
        (result,) = world.results(job_id)
        assert result.error is None and result.adapters[0].name == "a"
        assert world.engine.requests.pop().tau == tau
    assert setting.in_use() == "fake"


def test_a_job_whose_encoder_is_gone_says_so_and_keeps_what_needs_none(
    setting: Setting, tmp_path: Path, redis_url: str
) -> None:
    world = make_world(tmp_path, redis_url, store=setting.store, encoders=setting.encoders)
    prompts = [{"prompt": "aaa"}, {"prompt": "bbb", "options": {"adapters": []}}, {"prompt": "c"}]
    start_job(world, "j", "gone", prompts)
    world.run_next()
    codes = [r.error and r.error.code for r in world.results("j")]
    assert codes == ["encoder_unavailable", None, "encoder_unavailable"]
    assert world.store.exists(keys.finished("j"))


# Where they come from


class OwnEncoder:
    """Stands for Encoder.load: RAMOLE_ENCODER gives the version `own`."""

    loads = 0

    def load(self, name: str, prefix: str) -> FakeEncoder:
        self.loads += 1
        return FakeEncoder("own")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> OwnEncoder:
    found = OwnEncoder()
    monkeypatch.setattr("worker.encoder_source.Encoder", found)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letter_model(tmp_path_factory.mktemp("model"))


def source_of(tmp_path: Path) -> tuple[DirectoryStore, EncoderSource, Activations]:
    store = DirectoryStore(tmp_path / "store")
    return store, EncoderSource(store, Settings.load({}, home=tmp_path)), Activations(store)


def test_a_fresh_store_starts_with_the_encoder_of_the_settings(
    tmp_path: Path, own: OwnEncoder
) -> None:
    _, source, log = source_of(tmp_path)
    assert load_encoder_in_use(log, source).version == "own"
    assert log.active().encoder == "own" and own.loads == 1
    assert load_encoder_in_use(log, source).version == "own"  # the next worker


def test_a_trained_encoder_in_use_is_loaded_alone_until_a_job_pins_the_settings_one(
    tmp_path: Path, own: OwnEncoder, model: Path
) -> None:
    store, source, log = source_of(tmp_path)
    log.start("own")
    store_encoder(store, model, encoder_card("e1"))
    log.use("encoder", "e1")
    assert load_encoder_in_use(log, source).version == "e1" and own.loads == 0
    assert source.load("own").version == "own" and own.loads == 1
    for _ in range(3):
        with pytest.raises(NotFoundError, match="RAMOLE_ENCODER"):
            source.load("e2")
    assert own.loads == 1  # known by now


def test_a_worker_that_cannot_load_what_is_in_use_says_what_to_set(
    tmp_path: Path, own: OwnEncoder, model: Path
) -> None:
    store, source, log = source_of(tmp_path)
    log.start("somebody-else-s")
    with pytest.raises(ConfigError, match="'somebody-else-s'.*RAMOLE_ENCODER.*'own'"):
        load_encoder_in_use(log, source)
    store_encoder(store, model, encoder_card("e1"))
    store.put(keys.encoder_files("e1") + "modules.json", b"[]")
    log.use("encoder", "e1")
    with pytest.raises(ConfigError, match="'e1'.*ramole encoders rollback"):
        load_encoder_in_use(log, source)
