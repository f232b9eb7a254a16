"""Training of the encoder on samples: what the loss is, what may be judged, what must not move."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ramole_core.errors import InvalidInputError
from ramole_core.retrieval import training
from ramole_core.retrieval.encoder import Encoder, adapter_vector
from ramole_core.retrieval.scores import LeaveOneOut
from ramole_core.retrieval.training import Recipe, fine_tune, leave_one_out_loss
from ramole_core.retrieval.tuning import Split, encode_all, tune
from ramole_core.retrieval.whitening import whiten, whitened_model, whitening
from tests.tiny_encoder import letter_model

SAMPLES = {
    "vowels": ["aei", "oua", "iee", "uoa", "eai", "aou"],
    "early": ["bcd", "dfg", "cbf", "gdb", "fcd", "bgc"],
    "late": ["xyz", "zwv", "yxv", "wzx", "vyz", "zxw"],
    "middle": ["klm", "mnk", "lnp", "pkm", "nml", "kpn"],
}
RECIPE = Recipe(steps=20, learning_rate=0.05, crop=0.0, word_dropout=0.0)


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder.load(str(letter_model(tmp_path / "letters")))


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def random_vectors(num: int, count: int, width: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(num, count, width))).astype(np.float32)


def test_the_loss_is_infonce_against_the_means_of_the_other_samples() -> None:
    vectors, tau = random_vectors(3, 4, 5), 0.1
    losses = []
    for n in range(3):
        for m in range(4):
            logits = [
                float(
                    vectors[n, m] @ unit(vectors[j].sum(axis=0) - (vectors[n, m] if j == n else 0))
                )
                / tau
                for j in range(3)
            ]
            losses.append(math.log(sum(map(math.exp, logits))) - logits[n])
    found = leave_one_out_loss(torch.from_numpy(vectors), tau)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_leave_one_out_ranks_each_sample_against_its_adapter_without_it() -> None:
    samples = list(random_vectors(5, 4, 3))
    found = LeaveOneOut.of(samples)
    for row, (n, m) in enumerate((n, m) for n in range(5) for m in range(4)):
        for j in range(5):
            rest = np.delete(samples[j], m, axis=0) if j == n else samples[j]
            expected = samples[n][m] @ adapter_vector(rest)
            assert found.similarities[row, j] == pytest.approx(expected, abs=1e-5)
    own = found.similarities[np.arange(20), found.own]
    places = (found.similarities >= own[:, None]).sum(axis=1)
    assert found.scores().top1 == pytest.approx(100 * np.mean(places <= 1), abs=0.01)
    assert found.scores().top8 == 100.0


def test_whitening_makes_the_samples_of_an_adapter_vary_alike_in_all_directions() -> None:
    rng = np.random.default_rng(0)
    stretch = np.array([5.0, 1.0, 0.2])
    samples = [unit(rng.normal(size=3) * 9 + rng.normal(size=(400, 3)) * stretch) for _ in range(4)]
    samples = [s.astype(np.float32) for s in samples]
    weight, bias = whitening(samples, shrinkage=1e-6)
    mapped = [s @ weight.T + bias for s in samples]
    within = np.concatenate([m - m.mean(axis=0) for m in mapped])
    covariance = within.T @ within / len(within)
    assert np.allclose(covariance / np.trace(covariance) * 3, np.eye(3), atol=1e-2)
    center = np.mean([adapter_vector(s) for s in samples], axis=0)
    assert np.allclose(weight @ center + bias, 0, atol=1e-4)


def test_the_whitened_model_gives_what_the_formula_gives_and_survives_the_disk(
    encoder: Encoder, tmp_path: Path
) -> None:
    texts = [text for found in SAMPLES.values() for text in found]
    plain = encoder.encode(texts)
    weight, bias = whitening(list(encode_all(encoder, SAMPLES).values()), 0.5)
    model = whitened_model(encoder.model, weight, bias)
    expected = whiten(plain, weight, bias)
    assert np.allclose(Encoder(model, "v").encode(texts), expected, atol=1e-5)
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = Encoder.load(str(tmp_path / "saved"))
    assert np.allclose(again.encode(texts), expected, atol=1e-5)


def test_tuning_makes_held_out_samples_easier_to_tell_apart(tmp_path: Path) -> None:
    encoder = Encoder.load(str(letter_model(tmp_path / "letters", width=3, seed=1)))
    split = Split.draw(SAMPLES, 1.0, seed=0)
    tuned = tune(encoder, "letters", SAMPLES, split, RECIPE, seed=0)
    assert tuned.before is not None and tuned.after is not None
    assert tuned.after.num_prompts == tuned.before.num_prompts == 4  # one of six, four adapters
    assert tuned.after.overall > tuned.before.overall
    assert all(np.allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5) for v in tuned.vectors.values())
    again = encode_all(tuned.encoder, SAMPLES)
    assert all(np.allclose(again[name], tuned.vectors[name], atol=1e-5) for name in SAMPLES)


def test_the_same_seed_gives_the_same_version_and_another_gives_another(tmp_path: Path) -> None:
    def version(seed: int) -> str:
        encoder = Encoder.load(str(letter_model(tmp_path / "letters")))
        split = Split.draw(SAMPLES, 0.5, seed)
        return tune(encoder, "letters", SAMPLES, split, RECIPE, seed).encoder.version

    assert version(1) == version(1) != version(2)
    assert version(1).startswith("letters-tuned-")


def test_adapters_that_were_not_drawn_give_no_gradient(encoder: Encoder) -> None:
    before = encoder.encode(["xyz"])
    fine_tune(encoder.model, [SAMPLES["vowels"], SAMPLES["early"]], RECIPE, seed=0)
    assert np.allclose(encoder.encode(["xyz"]), before, atol=1e-2)  # weight decay alone


def test_an_adapter_with_two_samples_takes_part_without_making_the_others_poorer(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    embed = training._embedded

    def spy(model: Any, batch: list[list[str]]) -> torch.Tensor:
        seen.append([len(texts) for texts in batch])
        return embed(model, batch)

    monkeypatch.setattr(training, "_embedded", spy)
    fine_tune(encoder.model, [SAMPLES["vowels"], SAMPLES["late"][:2]], RECIPE, seed=0)
    assert seen == [[RECIPE.samples_per_adapter] * 2] * RECIPE.steps


def test_no_step_changes_nothing_but_adds_the_whitening(encoder: Encoder) -> None:
    plain = encoder.encode(["xyz"])
    split = Split.draw(SAMPLES, 1.0, seed=0)
    tuned = tune(encoder, "letters", SAMPLES, split, Recipe(steps=0), seed=0)
    assert np.array_equal(tuned.plain.encode(["xyz"]), plain)
    assert not np.allclose(tuned.encoder.encode(["xyz"]), plain, atol=1e-2)


def test_a_part_of_the_adapters_is_drawn_whole_and_the_rest_is_held_out() -> None:
    split = Split.draw(SAMPLES, 0.5, seed=3)
    assert len(split.training) == 2
    held_out = {name for name, _ in split.held_out(SAMPLES)}
    assert held_out == SAMPLES.keys() - split.training.keys()
    assert Split.draw(SAMPLES, 0.5, seed=3) == split


def test_of_all_adapters_a_fifth_of_the_samples_is_held_out() -> None:
    samples = SAMPLES | {"few": ["abc", "bca", "cab"]}
    split = Split.draw(samples, 1.0, seed=0)
    assert {name: len(places) for name, places in split.training.items()} == {
        name: 3 if name == "few" else 5 for name in samples
    }
    assert len(split.held_out(samples)) == len(SAMPLES)


def test_a_text_that_two_adapters_share_gives_no_gradient_where_others_remain() -> None:
    samples = {"a": ["one", "two", "same"], "b": ["three", "four", " same "], "c": ["same", "same"]}
    split = Split({name: tuple(range(len(texts))) for name, texts in samples.items()})
    assert split.texts(samples) == [["one", "two"], ["three", "four"], ["same", "same"]]


def test_no_copy_of_a_text_that_was_learnt_is_held_out() -> None:
    samples = {"a": ["one", "two", " one "], "b": ["three", "two", "four"]}
    split = Split({"a": (0, 1)})
    assert split.held_out(samples) == [("b", 0), ("b", 2)]


@pytest.mark.parametrize(
    ("samples", "fraction", "message"),
    [
        ({"a": ["x"], "b": ["y", "z"]}, 1.0, "adapter 'a' has 1 sample prompt; training needs at"),
        ({"a": ["x", "y"]}, 1.0, "needs at least 2"),
        (SAMPLES, 0.25, "0.25 of 4 adapters are 1; training needs at least 2"),
    ],
)
def test_too_little_to_learn_from_is_refused_in_one_line(
    samples: dict[str, list[str]], fraction: float, message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Split.draw(samples, fraction, seed=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)
