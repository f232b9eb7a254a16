"""What each retriever finds for each test prompt, by the product's encoder, vectors and index.

Dims: N test prompts, D width of an embedding.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.method.cases import SETTINGS, Case, Setting, Zoo, ref_of
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.request import Expert
from ramole_core.retrieval.encoder import Encoder, Vectors, adapter_vector
from ramole_core.retrieval.index import AdapterIndex, Match

DEPTH: Final = 5  # the largest k that any row needs


@dataclass(frozen=True)
class Retrieval:
    """One retriever over all test prompts. `tau` is the temperature of its prior."""

    name: str
    tau: float
    queries: Vectors  # (N, D)
    index: AdapterIndex
    found: dict[Setting, list[list[Match]]]  # N lists of DEPTH matches, best first

    @classmethod
    def of(cls, name: str, encoder: Encoder, zoo: Zoo) -> "Retrieval":
        """Embeds samples and prompts and searches once for each setting."""
        index = AdapterIndex(encoder.width)
        for adapter in zoo.adapters:
            vectors = encoder.encode(list(zoo.samples[adapter]))
            index.add(ref_of(adapter), adapter_vector(vectors))
        queries = encoder.encode([case.prompt for case in zoo.cases])
        found = {setting: _search(index, queries, zoo, setting) for setting in SETTINGS}
        return cls(name, encoder.tau, queries, index, found)

    def experts(self, place: int, setting: Setting, k: int) -> tuple[Expert, ...]:
        """The k experts of test prompt `place`, best first, with their similarities."""
        return tuple(
            Expert(match.ref, similarity=match.similarity)
            for match in self.found[setting][place][:k]
        )

    def nearest_to_all(self, among: frozenset[AdapterRef], k: int) -> tuple[Expert, ...]:
        """The k adapters nearest to the mean embedding of all test prompts (AdapterSoup's set)."""
        mean = self.queries.mean(axis=0)  # (D,)
        matches = self.index.search(np.ascontiguousarray(mean[None]), k, among)[0]
        return tuple(Expert(match.ref, similarity=match.similarity) for match in matches)


def _search(index: AdapterIndex, queries: Vectors, zoo: Zoo, setting: Setting) -> list[list[Match]]:
    """One search per set of allowed adapters."""
    found: list[list[Match]] = [[] for _ in zoo.cases]
    groups: dict[frozenset[AdapterRef], list[int]] = {}
    for place, case in enumerate(zoo.cases):
        groups.setdefault(zoo.allowed(case, setting), []).append(place)
    for among, places in groups.items():
        for place, matches in zip(places, index.search(queries[places], DEPTH, among), strict=True):
            found[place] = matches
    return found


def accuracy(retrieval: Retrieval, zoo: Zoo, setting: Setting, k: int) -> float:
    """Per cent of the prompts with a right adapter among the first k."""

    def hit(case: Case, matches: list[Match]) -> bool:
        return any(zoo.is_right(case, match.ref.name, setting) for match in matches[:k])

    pairs = zip(zoo.cases, retrieval.found[setting], strict=True)
    return 100.0 * float(np.mean([hit(case, matches) for case, matches in pairs]))
