"""`python -m worker.train` for a retriever, in this process: from samples to an encoder in use."""

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ramole_core import keys, zoo
from ramole_core.activations import Activations
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.samples import parse_samples
from ramole_core.errors import NotFoundError
from ramole_core.retrieval.affinity import WEIGHT, Said
from ramole_core.retrieval.card import ConfidenceScale
from ramole_core.retrieval.encoder import Encoder, adapter_vector
from ramole_core.retrieval.encoder_store import fetch_encoder
from ramole_core.retrieval.vectors import VectorShelf, samples_key
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from ramole_core.training import TrainReport
from ramole_core.zoo.evaluate import answers
from tests.tiny_encoder import letter_model
from tests.zoo_store import NAMES, contents, make_zoo_store
from worker.train import __main__ as process
from worker.train import interrupts, retriever
from worker.train.base import Workbench
from worker.train.context import TrainContext
from worker.train.progress import Progress
from worker.train.solo import SoloAnswers

Train = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("prepared")
    make_zoo_store(home)
    letter_model(home / "letters")
    return home


@pytest.fixture
def store(prepared: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    shutil.copytree(prepared / "store", home / "store")
    monkeypatch.setenv("RAMOLE_HOME", str(home))
    monkeypatch.setenv("RAMOLE_TORCH_THREADS", "1")
    monkeypatch.setenv("RAMOLE_ENCODER", str(prepared / "letters"))
    found = DirectoryStore.from_location(str(home / "store"))
    Activations(found).start(Encoder.load(str(prepared / "letters")).version)
    return found


@pytest.fixture
def train(store: DirectoryStore, capsys: pytest.CaptureFixture[str]) -> Train:
    def run(**options: Any) -> tuple[int, Any, str]:
        """(exit code, the JSON on stdout, stderr)"""
        capsys.readouterr()
        code = process.main([json.dumps({"kind": "retriever", "steps": 2, **options})])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def sample_sets(path: Path, sets: list[Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in sets))
    return str(path)


def test_a_trained_encoder_is_stored_described_and_in_use(
    train: Train, store: DirectoryStore, home: Path
) -> None:
    first = Activations(store).active().encoder
    code, found, err = train(activate="always", neighbours=0)
    report = TrainReport.model_validate(found)
    assert code == 0 and report.active and report.version, err
    assert Activations(store).active().encoder == report.version != first
    assert report.num_adapters == len(NAMES) and report.num_examples == len(NAMES) * 16
    encoder = fetch_encoder(store, report.version, home / "cache" / "encoders")
    for ref in _refs(store):
        assert store.exists(keys.vector(encoder.version, ref))
        stored = VectorShelf(store, encoder.version, encoder.encode, encoder.width).vector(ref)
        samples = parse_samples(store.get(samples_key(ref)))
        assert np.allclose(stored, adapter_vector(encoder.encode(samples)), atol=1e-5)


def _refs(store: DirectoryStore) -> list[Any]:
    registry = Registry(store)
    registry.refresh()
    return list(registry.active().values())


def test_each_adapter_is_also_described_by_what_it_answers_as_others_do(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def says(self: SoloAnswers, pairs: Any) -> list[Said]:
        """The first two adapters always agree, the third never with anybody."""
        return [Said("yes" if place < 2 else f"{prompt}?", -0.25) for place, prompt in pairs]

    monkeypatch.setattr(SoloAnswers, "answer", says)
    _, found, _ = train(activate="always", neighbours=2)
    encoder = fetch_encoder(store, found["version"], home / "cache" / "encoders")
    assert encoder.confidence == ConfidenceScale(floor=-0.25, spread=0.0)
    shelf = VectorShelf(store, encoder.version, encoder.encode, encoder.width)
    refs = _refs(store)
    samples = [parse_samples(store.get(samples_key(ref))) for ref in refs]
    plain = [adapter_vector(encoder.encode(texts)) for texts in samples]
    first = plain[0] + WEIGHT * plain[1]
    assert np.allclose(shelf.vector(refs[0]), first / np.linalg.norm(first), atol=1e-5)
    assert np.allclose(shelf.vector(refs[2]), plain[2], atol=1e-5)


def test_solo_answers_are_those_of_the_adapters_under_peft(
    store: DirectoryStore, home: Path
) -> None:
    context = TrainContext.open(Settings.load(), Progress(io.StringIO()), interrupts.Interrupts())
    refs = _refs(store)
    pairs = [
        (place, json.loads(store.get(samples_key(refs[of])).splitlines()[0]))
        for place in range(3)
        for of in range(3)
    ]
    found = SoloAnswers(Workbench.open(context), context, refs).answer(pairs)
    tokenizer = AutoTokenizer.from_pretrained(zoo.base_path())
    for place, ref in enumerate(refs):
        base = AutoModelForCausalLM.from_pretrained(zoo.base_path())
        model = PeftModel.from_pretrained(base, str(zoo.adapter_path(ref.name)))
        mine = [i for i, (pupil, _) in enumerate(pairs) if pupil == place]
        assert [found[i].text for i in mine] == answers(
            model, tokenizer, [pairs[i][1] for i in mine]
        )


def test_the_same_run_again_changes_nothing(train: Train, store: DirectoryStore) -> None:
    _, first, _ = train(activate="always", seed=3)
    before = contents(store)
    code, second, _ = train(activate="always", seed=3)
    assert code == 0 and second["version"] == first["version"] and second["active"]
    assert contents(store) == before


def test_a_trained_vector_that_is_lost_is_never_replaced_by_another(
    train: Train, store: DirectoryStore, home: Path
) -> None:
    _, found, _ = train(activate="always", neighbours=2)
    encoder = fetch_encoder(store, found["version"], home / "cache" / "encoders")
    assert set(encoder.vectors) == set(map(str, _refs(store)))
    shelf = VectorShelf(
        store, encoder.version, encoder.encode, encoder.width, trained=encoder.vectors
    )
    ref = _refs(store)[0]
    for damage in (lambda key: store.put(key, b"x"), store.delete):
        damage(keys.vector(encoder.version, ref))
        with pytest.raises(NotFoundError, match="train the retriever again"):
            shelf.vector(ref)


def test_no_version_has_two_sets_of_vectors(train: Train) -> None:
    _, plain, _ = train(activate="never", neighbours=0)
    _, mixed, _ = train(activate="never", neighbours=2)
    assert plain["version"] != mixed["version"]


def test_what_is_no_better_is_stored_but_not_in_use(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "_overall", lambda scores: 50.0)
    before = Activations(store).active()
    code, found, _ = train()
    assert code == 0 and not found["active"]
    assert "ramole encoders use " + found["version"] in found["verdict"]
    assert Activations(store).active() == before
    assert store.exists(keys.encoder_card(found["version"]))


def test_what_was_not_measured_is_not_said_to_be_worse(train: Train, tmp_path: Path) -> None:
    sets = [{"adapter": name, "samples": [f"{name} 1", f"{name} 2"]} for name in ("x", "y")]
    code, found, _ = train(data=sample_sets(tmp_path / "sets.jsonl", sets), neighbours=0)
    assert code == 0 and not found["active"] and found["held_out_after"] is None
    assert "nothing was held out" in found["verdict"] and "not better" not in found["verdict"]


def test_a_missing_base_model_is_found_out_before_the_training(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "tune", lambda *_: pytest.fail("trained in vain"))
    monkeypatch.setenv("RAMOLE_MODEL", "/nonexistent")
    before = contents(store)
    code, found, _ = train()
    assert code == 2 and "/nonexistent" in found["error"]["message"], found
    assert contents(store) == before


def test_an_adapter_whose_samples_are_gone_is_named_and_can_be_left_out(
    train: Train, store: DirectoryStore
) -> None:
    lost = next(ref for ref in _refs(store) if ref.name == NAMES[0])
    store.delete(samples_key(lost))
    code, found, _ = train()
    assert code == 2 and f"--exclude {NAMES[0]}" in found["error"]["message"], found
    code, found, err = train(exclude=[NAMES[0]], activate="always")
    assert code == 0 and found["active"] and f"{lost} will not be found" in err
    assert not store.exists(keys.vector(found["version"], lost))


def test_a_broken_encoder_in_use_can_be_trained_away(train: Train, store: DirectoryStore) -> None:
    Activations(store).use("encoder", "gone")
    assert train()[0] != 0
    code, found, _ = train(activate="always")
    assert code == 0 and found["active"]


def test_a_dry_run_counts_and_stores_nothing(train: Train, store: DirectoryStore) -> None:
    before = contents(store)
    code, found, _ = train(dry_run=True, fraction=0.7, steps=None)
    assert code == 0 and found["version"] is None and found["stopped_by"] == "dry-run"
    assert found["num_adapters"] == 2 and found["num_examples"] == 40 and found["seconds"] > 0
    assert contents(store) == before


def test_an_adapter_may_be_left_out(train: Train) -> None:
    code, found, _ = train(exclude=[NAMES[0]], dry_run=True)
    assert code == 0 and found["num_adapters"] == len(NAMES) - 1


def test_samples_may_come_from_a_file(train: Train, tmp_path: Path, store: DirectoryStore) -> None:
    sets = [{"adapter": n, "samples": [f"{n} {i}" for i in range(6)]} for n in ("new-a", "new-b")]
    code, found, err = train(data=sample_sets(tmp_path / "sets.jsonl", sets), activate="always")
    assert code == 0 and found["num_adapters"] == 2, err
    assert all(store.exists(keys.vector(found["version"], ref)) for ref in _refs(store))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            [{"adapter": "a", "samples": ["x"]}, {"adapter": "b", "samples": ["y", "z"]}],
            "has 1 sam",
        ),
        ([{"adapter": "a", "samples": ["x", "y"]}], "training needs at least 2"),
        ([{"adapter": "a", "samples": ["x", "y"]}] * 2, "line 2: adapter 'a' stands there before"),
        ([{"adapter": "a", "samples": ["x", ""]}], "line 1: "),
        ([{"adapter": "a", "samples": []}], "line 1: samples: "),
        ([{"adapter": "../a", "samples": ["x", "y"]}], "line 1: adapter: "),
        ([["no", "object"]], "line 1: a JSON object is needed"),
        ([], "training needs at least 2"),
    ],
)
def test_bad_sample_sets_are_refused_in_one_line(
    train: Train, tmp_path: Path, store: DirectoryStore, sets: list[Any], message: str
) -> None:
    before = contents(store)
    code, found, err = train(data=sample_sets(tmp_path / "sets.jsonl", sets))
    assert code == 2 and message in found["error"]["message"], found
    assert err.count("\n") == 1 and message in err
    assert contents(store) == before


def test_an_unknown_adapter_to_leave_out_is_named(train: Train, store: DirectoryStore) -> None:
    before = contents(store)
    code, found, _ = train(exclude=["nobody"])
    assert code == 2 and "--exclude: no adapter 'nobody'" in found["error"]["message"]
    assert contents(store) == before


def test_an_interrupted_run_leaves_the_store_as_it_was(
    train: Train, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    monkeypatch.setattr(retriever, "_show", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    code, found, err = train()
    assert code == 130 and found is None
    assert "nothing was changed; run the same command again" in err
    assert contents(store) == before
