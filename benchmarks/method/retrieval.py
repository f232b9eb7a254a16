"""What each retriever finds for each test prompt, by the product's encoder, vectors and index.

A masked adapter leaves no trace: the vectors of the others are mixed without its row and column of
the affinities, and searched in an index of their own. Dims: N test prompts, A adapters, D width.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.method.cases import Pool, Zoo, ref_of
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.choice import CascadeRule
from ramole_core.engine.request import Expert
from ramole_core.retrieval.affinity import WEIGHT, Matrix, Measured, mixed
from ramole_core.retrieval.encoder import Encoder, Vectors, adapter_vector
from ramole_core.retrieval.index import AdapterIndex, Match

DEPTH: Final = 5  # the largest k that any row needs


@dataclass(frozen=True)
class Retrieval:
    """One retriever over all test prompts. `tau` is the temperature of its prior, `rule` that of
    its cascade (None: it has none)."""

    name: str
    encoder: Encoder
    tau: float
    vectors: Vectors  # (A, D) of the adapters in the zoo's order, no adapter masked
    queries: Vectors  # (N, D)
    index: AdapterIndex  # of `vectors`
    found: dict[Pool, list[list[Match]]]  # N lists of DEPTH matches, best first
    rule: CascadeRule | None = None

    @classmethod
    def of(
        cls,
        name: str,
        encoder: Encoder,
        zoo: Zoo,
        measured: Measured | None = None,
        weight: float = WEIGHT,
        tau: float | None = None,
    ) -> "Retrieval":
        """Embeds samples and prompts and searches once for each set of adapters. `measured` mixes
        the vectors and calibrates the cascade (None: neither); `tau`: None for the encoder's."""
        untried = Measured(np.eye(len(zoo.adapters), dtype=np.float32), None)
        known, scale = (measured or untried).affinity, (measured or untried).confidence
        rule = None if scale is None else CascadeRule.calibrated(scale.floor, scale.spread)
        bare = described(encoder, zoo)
        vectors = mixed(bare, known, weight)
        index = _index(zoo.adapters, vectors)
        queries = encoder.encode([case.prompt for case in zoo.cases])
        full = index.search(queries, DEPTH, frozenset(map(ref_of, zoo.adapters)))
        found: dict[Pool, list[list[Match]]] = {
            "full": full,
            "masked": _masked(zoo, bare, known, weight, queries),
        }
        return cls(name, encoder, tau or encoder.tau, vectors, queries, index, found, rule)

    def experts(self, place: int, pool: Pool, k: int) -> tuple[Expert, ...]:
        """The k experts of test prompt `place`, best first, with their similarities."""
        return tuple(
            Expert(match.ref, similarity=match.similarity) for match in self.found[pool][place][:k]
        )

    def nearest_to_all(self, among: frozenset[AdapterRef], k: int) -> tuple[Expert, ...]:
        """The k adapters nearest to the mean embedding of all test prompts (AdapterSoup's set)."""
        mean = self.queries.mean(axis=0)  # (D,)
        matches = self.index.search(np.ascontiguousarray(mean[None]), k, among)[0]
        return tuple(Expert(match.ref, similarity=match.similarity) for match in matches)


def described(encoder: Encoder, zoo: Zoo) -> Vectors:
    """(A, D) unit vectors of the adapters: the means of their samples."""
    found = [adapter_vector(encoder.encode(list(zoo.samples[name]))) for name in zoo.adapters]
    return np.stack(found)


def without(bare: Vectors, affinity: Matrix, place: int, weight: float = WEIGHT) -> Vectors:
    """(A - 1, D) mixed vectors as if the adapter at `place` had never been there."""
    rest = np.delete(np.arange(len(bare)), place)
    return mixed(bare[rest], affinity[np.ix_(rest, rest)], weight)


def _masked(
    zoo: Zoo, bare: Vectors, affinity: Matrix, weight: float, queries: Vectors
) -> list[list[Match]]:
    """One index for each adapter, without it, searched by the prompts of its task."""
    found: list[list[Match]] = [[] for _ in zoo.cases]
    for place, masked in enumerate(zoo.adapters):
        names = [name for name in zoo.adapters if name != masked]
        index = _index(names, without(bare, affinity, place, weight))
        mine = [i for i, case in enumerate(zoo.cases) if case.adapter == masked]
        matches = index.search(queries[mine], DEPTH, frozenset(map(ref_of, names)))
        for i, best in zip(mine, matches, strict=True):
            found[i] = best
    return found


def _index(names: tuple[str, ...] | list[str], vectors: Vectors) -> AdapterIndex:
    index = AdapterIndex(vectors.shape[1])
    for name, vector in zip(names, vectors, strict=True):
        index.add(ref_of(name), vector)
    return index
