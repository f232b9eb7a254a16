"""Affinity: adapters are known by what they answer as others do."""

from collections.abc import Sequence

import numpy as np
import pytest

from ramole_core.retrieval.affinity import (
    NUM_PROMPTS,
    Said,
    Trial,
    affinities,
    measure,
    mixed,
    trials,
)


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


VECTORS = unit(np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0], [0, 0, 1.0]]))


def test_every_adapter_is_tried_on_its_own_samples_and_its_nearest_neighbours_on_them() -> None:
    found = trials(VECTORS, num_neighbours=1)
    assert {t.pupil for t in found if t.owner == 0} == {0, 1}
    assert all(Trial(place, place) in found for place in range(4))
    assert len(found) == 8
    assert len(trials(VECTORS, num_neighbours=99)) == 16


def test_affinity_is_the_share_of_equal_answers_and_no_answer_equals_none() -> None:
    found = affinities(
        2,
        {
            Trial(0, 0): ["a", "b", None, "d"],
            Trial(0, 1): ["a", "x", None, "d"],
            Trial(1, 1): [None, None],
        },
    )
    assert found.tolist() == [[1.0, 0.5], [0.0, 1.0]]


def test_mixed_vectors_are_the_formula_and_without_affinity_nothing_changes() -> None:
    affinity = np.array([[1, 0.5, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0.25, 0, 1]], np.float32)
    expected = VECTORS[1] + 0.5 * (0.5 * VECTORS[0] + 0.25 * VECTORS[3])
    assert np.allclose(mixed(VECTORS, affinity, 0.5)[1], unit(expected), atol=1e-6)
    assert np.allclose(mixed(VECTORS, np.eye(4, dtype=np.float32)), VECTORS, atol=1e-6)
    assert np.allclose(mixed(VECTORS, affinity, 0.0), VECTORS, atol=1e-6)


@pytest.mark.parametrize("num_samples", [2, NUM_PROMPTS + 5])
def test_measuring_asks_each_pair_once_and_hands_the_answers_to_the_right_trial(
    num_samples: int,
) -> None:
    samples = [[f"{owner}:{i}" for i in range(num_samples)] for owner in range(4)]
    asked: list[tuple[int, str]] = []

    def answer(pairs: Sequence[tuple[int, str]]) -> list[Said | None]:
        """Adapters 0 and 1 agree on even samples, nobody else on anything."""
        asked.extend(pairs)
        return [
            Said("same" if pupil < 2 and int(text[2:]) % 2 == 0 else f"{pupil} {text}", -1.0)
            for pupil, text in pairs
        ]

    found = measure(samples, VECTORS, 3, answer).affinity
    used = min(num_samples, NUM_PROMPTS)
    assert len(asked) == len(set(asked)) == 16 * used
    assert found[0, 1] == found[1, 0] == pytest.approx(-(-used // 2) / used)
    assert found[2].tolist() == [0, 0, 1, 0]


def test_confidence_is_of_own_answers_at_its_low_end_and_of_all_in_its_spread() -> None:
    def answer(pairs: Sequence[tuple[int, str]]) -> list[Said | None]:
        """Everyone is sure of the own samples and unsure of others'; the last never answers."""
        sure = [int(text[0]) == pupil for pupil, text in pairs]
        return [
            None if pupil == 3 else Said("x", -0.1 if is_own else -0.9)
            for (pupil, _), is_own in zip(pairs, sure, strict=True)
        ]

    found = measure([[f"{owner}"] for owner in range(4)], VECTORS, 3, answer).confidence
    assert found is not None and found.floor == pytest.approx(-0.1)
    assert found.spread == pytest.approx(float(np.std([-0.1] * 3 + [-0.9] * 9)))
    assert (
        measure([["0"], ["1"]], VECTORS[:2], 1, lambda pairs: [None] * len(pairs)).confidence
        is None
    )
