"""`python -m worker.train` in this process: from a file to a router in the store; refusals."""

import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.cache import AdapterCache
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.engine import Engine
from ramole_core.engine.model import load_base
from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.mole.attach import attach
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.card import CARD_FILE, WEIGHTS_FILE, RouterCard
from ramole_core.mole.gates import Mix
from ramole_core.mole.plan import BatchPlan
from ramole_core.mole.router import random_router
from ramole_core.mole.router_setup import RouterRecipe
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from ramole_core.training import TrainReport, TrainRouter
from tests.unit.worker.world import FakeEncoder
from tests.zoo_store import (
    NAMES,
    contents,
    make_zoo_store,
    one_sided_records,
    records,
    write_records,
)
from worker.routers import StoredRouters
from worker.train import __main__ as process
from worker.train import router
from worker.train.progress import Progress

SMALL: dict[str, Any] = {"steps": 2, "batch_size": 4, "rank": 2, "prior": False}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("prepared")
    make_zoo_store(home)
    return home


@pytest.fixture
def store(prepared: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    shutil.copytree(prepared / "store", home / "store")
    monkeypatch.setenv("RAMOLE_HOME", str(home))
    monkeypatch.setenv("RAMOLE_TORCH_THREADS", "1")
    return DirectoryStore.from_location(str(home / "store"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_records(tmp_path / "data.jsonl", records()))


@pytest.fixture
def one_sided(tmp_path: Path) -> str:
    return str(write_records(tmp_path / "one-sided.jsonl", one_sided_records()))


WELL: dict[str, Any] = {"steps": 10, "learning_rate": 0.01, "dropout": 0.0, "rank": 8}

Train = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def train(store: DirectoryStore, data: str, capsys: pytest.CaptureFixture[str]) -> Train:
    def run(**options: Any) -> tuple[int, Any, str]:
        """(exit code, the JSON on stdout, stderr)"""
        request = {"kind": "router", "data": data, **SMALL, **options}
        capsys.readouterr()
        code = process.main([json.dumps(request)])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def test_a_router_is_trained_stored_and_in_use_when_it_is_better(
    train: Train, store: DirectoryStore, one_sided: str
) -> None:
    before = contents(store)
    code, found, err = train(data=one_sided, **WELL)
    report = TrainReport.model_validate(found)
    assert code == 0 and report.active and report.version, err
    assert report.held_out_after and report.held_out_before
    assert report.held_out_after < 0.5 * report.held_out_before
    assert (report.num_adapters, report.num_examples) == (3, len(one_sided_records()))
    assert Activations(store).active().router == report.version
    card = RouterCard.model_validate_json(store.get(keys.router(report.version) + CARD_FILE))
    assert card.base == BaseInfo.model_validate_json(store.get(keys.BASE)).fingerprint
    assert card.adapters == tuple(f"{name}@1" for name in NAMES)
    assert (card.rank, card.seed, card.prior, card.dropout) == (8, 0, False, 0.0)
    assert card.held_out_after == report.held_out_after
    new = contents(store).keys() - before.keys()
    prefix = keys.router(report.version)
    assert new == {prefix + CARD_FILE, prefix + WEIGHTS_FILE, keys.activation(1)}
    assert before.items() <= contents(store).items()
    assert "step 10/10" in err


def test_the_same_training_again_is_the_same_version(train: Train, store: DirectoryStore) -> None:
    _, first, _ = train(activate="always")
    before = contents(store)
    code, again, _ = train(activate="always")
    assert (code, again["version"], again["active"]) == (0, first["version"], True)
    assert contents(store) == before
    assert train(activate="always", seed=1)[1]["version"] != first["version"]


def test_a_router_that_is_not_better_is_stored_and_not_in_use(
    train: Train, store: DirectoryStore, one_sided: str
) -> None:
    code, found, _ = train(learning_rate=1e-9)
    assert code == 0 and not found["active"]
    assert f"`ramole routers use {found['version']}`" in found["verdict"]
    assert store.exists(keys.router(found["version"]) + CARD_FILE)
    assert Activations(store).active().router is None
    _, never, _ = train(activate="never", data=one_sided, **WELL)
    assert not never["active"] and "routers use" in never["verdict"]


def test_the_router_in_use_is_the_one_to_beat(
    train: Train, store: DirectoryStore, one_sided: str
) -> None:
    _, good, _ = train(data=one_sided, **WELL)
    _, worse, _ = train(data=one_sided, learning_rate=1e-4)
    assert worse["held_out_serving"] == pytest.approx(good["held_out_after"])
    assert not worse["active"] and good["version"] in worse["verdict"]
    assert Activations(store).active().router == good["version"]


def test_the_prior_is_that_of_the_encoder_in_use(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder("fake-2", tau=0.07)
    monkeypatch.setattr(router, "encoder_in_use", lambda context: encoder)
    recipes = []
    trained = router.train_router

    def spy(*args: Any, **more: Any) -> Any:
        recipes.append((args[2], args[3]))
        return trained(*args, **more)

    monkeypatch.setattr(router, "train_router", spy)
    code, found, err = train(prior=True)
    assert code == 0, err
    [(examples, recipe)] = recipes
    assert (recipe.encoder, recipe.tau) == ("fake-2", 0.07)
    assert all(set(e.similarities) == {AdapterRef(n, 1) for n in NAMES} for e in examples)
    card = store.get(keys.router(found["version"]) + CARD_FILE)
    assert RouterCard.model_validate_json(card).encoder == "fake-2"


def test_a_dry_run_estimates_and_stores_nothing(train: Train, store: DirectoryStore) -> None:
    before = contents(store)
    code, found, _ = train(dry_run=True, prior=True, steps=500)
    assert code == 0 and contents(store) == before
    assert found["version"] is None and found["num_steps"] == 500
    assert (found["num_adapters"], found["num_examples"]) == (3, 30)
    assert found["num_parameters"] > 0 and found["seconds"] > 0


def test_chosen_adapters_leave_the_other_lines_out(train: Train) -> None:
    code, found, _ = train(dry_run=True, adapters=list(NAMES[:2]))
    assert (code, found["num_adapters"], found["num_examples"]) == (0, 2, 20)


GOOD = records()[0]
REFUSALS = {
    "broken JSON": ([*records(), '{"prompt"'], {}, "line 31: not JSON"),
    "no object": ([*records(), 7], {}, "line 31"),
    "not UTF-8": ([*records(), b"\xff"], {}, "line 31: not JSON: not UTF-8"),
    "no target": ([*records(), {"prompt": "p", "adapter": NAMES[0]}], {}, "line 31: target"),
    "a number": ([*records(), {**GOOD, "target": 7}], {}, "line 31: target"),
    "empty": ([*records(), {**GOOD, "prompt": ""}], {}, "line 31: prompt"),
    "unknown adapter": ([*records(), {**GOOD, "adapter": "x"}], {}, "line 31: no adapter 'x'"),
    "too long": ([*records(), {**GOOD, "prompt": "x" * 9000}], {}, "line 31: prompt and target"),
    "one adapter": (records(NAMES[:1]), {}, "a router needs two or more"),
    "one example": ([*records(NAMES[:2]), records(NAMES[2:])[0]], {}, "has 1 example"),
    "nothing": ([], {}, "a router needs two or more"),
    "chosen unknown": (records(), {"adapters": ["x", "y"]}, "--adapters: no adapter 'x'"),
    "chosen unnamed": (records(NAMES[:2]), {"adapters": list(NAMES)}, "no example of"),
    "no rank": (records(), {"rank": 0}, "rank"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_bad_input_is_one_line_and_changes_nothing(
    what: str, train: Train, store: DirectoryStore, tmp_path: Path
) -> None:
    lines, options, wanted = REFUSALS[what]
    path = tmp_path / "bad.jsonl"
    encoded = [x if isinstance(x, bytes) else x.encode() if isinstance(x, str) else
               json.dumps(x).encode() for x in lines]  # fmt: skip
    path.write_bytes(b"\n".join(encoded))
    before = contents(store)
    code, found, err = train(data=str(path), **options)
    assert code == 2 and found["error"]["code"] == "invalid_input", err
    assert wanted in found["error"]["message"]
    assert err == f"ramole: error: {found['error']['message']}\n"
    assert contents(store) == before


def test_other_refusals_name_what_to_set(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = contents(store)
    assert "No such file" in train(data=str(tmp_path / "gone"))[1]["error"]["message"]
    monkeypatch.setenv("RAMOLE_BANK_SIZE", "2")
    code, found, _ = train()
    assert code == 2 and "RAMOLE_BANK_SIZE" in found["error"]["message"]
    monkeypatch.delenv("RAMOLE_BANK_SIZE")
    code, found, _ = train(learning_rate=1.0, steps=1, activate="sometimes")
    assert code == 2 and "activate" in found["error"]["message"]
    assert contents(store) == before


def test_another_base_model_is_refused(train: Train, store: DirectoryStore) -> None:
    base = BaseInfo.model_validate_json(store.get(keys.BASE))
    alien = random_router({"q": (4, 4)}, 2, torch.Generator())
    for name, content in alien.to_files().items():
        store.put(keys.router("alien") + name, content)
    Activations(store).use("router", "alien")
    code, found, _ = train()
    assert code == 2 and "another base model" in found["error"]["message"]
    assert "ramole routers use none" in found["error"]["message"]
    assert train(activate="never")[0] == 0  # nothing to compare with
    store.put(keys.BASE, base.model_copy(update={"name": "other"}).model_dump_json().encode())
    before = contents(store)
    code, found, _ = train()
    assert code == 2 and "RAMOLE_MODEL" in found["error"]["message"]
    store.delete(keys.BASE)
    code, found, _ = train()
    assert code == 5 and "no worker has started" in found["error"]["message"]
    store.put(keys.BASE, before[keys.BASE])
    assert contents(store) == before


def test_a_signal_during_training_changes_nothing(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    sent: list[signal.Signals] = []
    monkeypatch.setattr(Progress, "step", lambda *_: signal.raise_signal(sent[-1]))
    for signum, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        sent.append(signum)
        code, found, err = train()
        assert (code, found) == (expected, None)
        assert "nothing was changed" in err
        assert contents(store) == before


def test_a_signal_while_the_result_is_stored_comes_too_late(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = DirectoryStore.create

    def late(self: DirectoryStore, key: str, content: bytes) -> bool:
        signal.raise_signal(signal.SIGINT)
        return create(self, key, content)

    monkeypatch.setattr(DirectoryStore, "create", late)
    code, found, _ = train(activate="always")
    assert code == 0 and Activations(store).active().router == found["version"]


def test_an_answer_under_the_stored_router_is_that_of_the_layer_with_the_trained_one(
    train: Train, store: DirectoryStore, home: Path
) -> None:
    version = train(steps=3, learning_rate=0.01)[1]["version"]
    settings = Settings(home=home, batch_interval_seconds=0.0)
    base = load_base(settings)
    mole = attach(base.model)
    routers = StoredRouters(store)
    bank = AdapterBank(
        base.targets,
        8,
        AdapterCache(store, home / "c"),
        base.device,
        base.dtype,
        mole.groups,
        routers,
    )
    refs = tuple(AdapterRef(name, 1) for name in NAMES)
    known = (0.6, 0.55, 0.5)
    engine = Engine(base, mole, bank, settings)
    experts = tuple(Expert(ref, s) for ref, s in zip(refs, known, strict=True))
    future = engine.submit(
        GenerationRequest(GOOD["prompt"], experts=experts, router=version, max_new_tokens=8)
    )
    while engine.step():
        pass
    engine.stop()  # the model has its own attention again
    for ref in refs:
        bank.acquire(ref)
    packed = bank.pack(refs).with_router(routers.load_router(version).pairs)
    ids = base.codec.encode_prompt(GOOD["prompt"])
    start = len(ids)
    for _ in range(8):
        mix = Mix("mole", refs, known, router="v")
        plan = BatchPlan.of_batch([mix], len(ids), packed, base.device)
        with torch.inference_mode(), mole.running(plan):
            ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in base.eos_ids:
            break
    assert future.result().text == base.codec.decode(ids[start:])


def test_the_request_and_the_recipe_have_the_same_defaults() -> None:
    request, recipe = TrainRouter(data="d"), RouterRecipe()
    for name in ("rank", "steps", "batch_size", "learning_rate", "dropout", "candidates", "seed"):
        assert getattr(request, name) == getattr(recipe, name), name


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_and_sparse_elsewhere() -> None:
    clock = [0.0]
    for stream, wanted in (
        (Terminal(), 1),
        (io.StringIO(), 4),  # a step takes 3 s: steps 4, 8, 12 and the last, 15
    ):
        progress = Progress(stream, lambda: clock[0])
        with progress.running():
            for step in range(1, 16):
                clock[0] += 3.0
                progress.step(step, 15, "loss 1.0")
        text = stream.getvalue()
        assert text.count("\n") == wanted
        assert "step 4/15, loss 1.0, 0.6 minutes left" in text
