"""Affinity: which adapters answer the sample prompts of others as those do, and what follows.

An adapter's samples say what it was made for; its affinities say what it can do besides. They need
no right answers: the adapter that a sample belongs to is the teacher. Dims: N adapters, D width.
Source: ours; measured by benchmarks.method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ramole_core.retrieval.card import ConfidenceScale
from ramole_core.retrieval.encoder import Vectors

WEIGHT: Final = 0.5  # of another adapter's vector at affinity 1
NUM_PROMPTS: Final = 8  # sample prompts of an adapter that are answered
FLOOR_QUANTILE: Final = 0.01  # of the adapters' answers to their own samples are less sure
MAX_NEW_TOKENS: Final = 32  # of an answer; longer ones are compared by their beginning

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Said:
    """An answer, and its mean log-probability of a token."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Measured:
    """Affinities (N, N), and how sure the adapters were (None: nobody gave an answer)."""

    affinity: Matrix
    confidence: ConfidenceScale | None


@dataclass(frozen=True)
class Trial:
    """`pupil` answers the samples of `owner`; both are places among the adapters."""

    owner: int
    pupil: int


def trials(vectors: Vectors, num_neighbours: int) -> list[Trial]:
    """Every adapter on its own samples, and its nearest neighbours on them too: vectors (N, D) of
    unit length. Farther adapters are taken to have affinity 0."""
    num = len(vectors)
    similarities = vectors @ vectors.T  # (N, N)
    np.fill_diagonal(similarities, np.inf)  # itself first
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, : num_neighbours + 1]
    return [Trial(owner, int(pupil)) for owner in range(num) for pupil in nearest[owner]]


def affinities(num: int, answers: Mapping[Trial, Sequence[str | None]]) -> Matrix:
    """C (N, N): C[i, j] is the share of adapter i's samples that j answers exactly as i does; 1 on
    the diagonal, 0 where nothing was tried. No answer (None) equals none."""
    matrix = np.eye(num, dtype=np.float32)
    for trial, found in answers.items():
        own = answers[Trial(trial.owner, trial.owner)]
        same = [a is not None and a == b for a, b in zip(found, own, strict=True)]
        if trial.owner != trial.pupil:
            matrix[trial.owner, trial.pupil] = np.mean(same)
    return matrix


def mixed(vectors: Vectors, affinity: Matrix, weight: float = WEIGHT) -> Vectors:
    """(N, D) unit vectors: v_j + w Σ_{i ≠ j} C[i, j] v_i, scaled to unit length."""
    others = affinity - np.diag(np.diag(affinity))
    summed = vectors + weight * others.T @ vectors  # (N, D)
    length = np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12)
    return np.asarray(summed / length, dtype=np.float32)


def measure(
    samples: Sequence[Sequence[str]],
    vectors: Vectors,
    num_neighbours: int,
    answer: Callable[[Sequence[tuple[int, str]]], Sequence[Said | None]],
) -> Measured:
    """The affinities of N adapters. `answer` takes (place of the adapter, prompt) pairs and returns
    what each adapter alone says, in their order; None where it cannot."""
    found = trials(vectors, num_neighbours)
    asked = [[(t.pupil, text) for text in samples[t.owner][:NUM_PROMPTS]] for t in found]
    said = iter(answer([pair for pairs in asked for pair in pairs]))
    answers = {
        trial: [next(said) for _ in pairs] for trial, pairs in zip(found, asked, strict=True)
    }
    texts = {
        trial: [None if one is None else one.text for one in given]
        for trial, given in answers.items()
    }
    return Measured(affinities(len(samples), texts), _confidence(answers))


def _confidence(answers: Mapping[Trial, Sequence[Said | None]]) -> ConfidenceScale | None:
    known = [
        (trial.owner == trial.pupil, one.confidence)
        for trial, given in answers.items()
        for one in given
        if one is not None
    ]
    own = [confidence for is_own, confidence in known if is_own]
    if not own:
        return None
    floor = float(np.quantile(own, FLOOR_QUANTILE))
    spread = float(np.std([confidence for _, confidence in known]))
    return ConfidenceScale(floor=round(floor, 6), spread=round(spread, 6))
