"""Retrieval of experts: prompts in, ranked adapters out, under the snapshot each job pins."""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import AdapterRefusedError, NotFoundError, PromptError
from ramole_core.retrieval.encoder import Vectors
from ramole_core.retrieval.index import AdapterIndex, Match
from ramole_core.retrieval.vectors import Embed, VectorShelf

logger = logging.getLogger(__name__)

Scope = tuple[int | None, tuple[str, ...] | None, tuple[str, ...]]  # position, allow, exclude


@dataclass(frozen=True)
class Query:
    """One search: what to embed and which adapters may answer."""

    text: str
    k: int
    allow: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    position: int | None = None  # registry position; None: the newest


class Retriever:
    """LoraRetriever's search (arXiv 2402.09997, eq. 2): top k by cosine to the adapter vectors.

    Thread-safe. The index grows from the registry as positions are asked for.
    """

    def __init__(self, registry: Registry, shelf: VectorShelf, embed: Embed, width: int) -> None:
        self._registry = registry
        self._shelf = shelf
        self._embed = embed
        self._index = AdapterIndex(width)
        self._lock = threading.Lock()
        self._without_vector: set[AdapterRef] = set()

    def search(self, queries: list[Query]) -> list[list[Match]]:
        """For each query its matches, best first; fewer than k when fewer may answer."""
        vectors = self._embed([query.text for query in queries])
        groups: dict[tuple[Scope, int], list[int]] = defaultdict(list)
        for i, query in enumerate(queries):
            groups[(query.position, query.allow, query.exclude), query.k].append(i)
        answers: list[list[Match]] = [[] for _ in queries]
        for (scope, k), rows in groups.items():
            among = self._candidates(*scope)
            for i, matches in zip(rows, self._search(vectors[rows], k, among), strict=True):
                answers[i] = matches
        return answers

    def prepare(self, refs: Iterable[AdapterRef]) -> None:
        """Puts the vectors of these adapters into the index; makes those that are missing."""
        self._add_missing(frozenset(refs))

    def _candidates(
        self, position: int | None, allow: tuple[str, ...] | None, exclude: tuple[str, ...]
    ) -> frozenset[AdapterRef]:
        excluded, allowed = frozenset(exclude), None if allow is None else frozenset(allow)
        return frozenset(
            ref
            for name, ref in self._registry.active(position).items()
            if name not in excluded and (allowed is None or name in allowed)
        )

    def _search(self, vectors: Vectors, k: int, among: frozenset[AdapterRef]) -> list[list[Match]]:
        self._add_missing(among)
        with self._lock:
            return self._index.search(vectors, k, among)

    def _add_missing(self, among: frozenset[AdapterRef]) -> None:
        with self._lock:
            missing = sorted(ref for ref in among if ref not in self._index)
        loaded = [(ref, self._vector(ref)) for ref in missing if ref not in self._without_vector]
        with self._lock:
            for ref, vector in loaded:
                if vector is not None:
                    self._index.add(ref, vector)

    def _vector(self, ref: AdapterRef) -> Vectors | None:
        """The adapter's vector; None for one that has none, which leaves only itself out."""
        try:
            return self._shelf.vector(ref)
        except (NotFoundError, AdapterRefusedError, PromptError) as e:
            logger.error("adapter %s cannot be retrieved: %s", ref, e)
            self._without_vector.add(ref)
            return None
