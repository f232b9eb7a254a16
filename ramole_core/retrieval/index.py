"""The adapter index: cosine search over adapter vectors, restricted per query.

Append-only: a vector once added stays (versions are immutable), and every search names the rows
that may answer, so that one index serves all registry snapshots at once. Not thread-safe.
"""

from dataclasses import dataclass

import faiss
import numpy as np

from ramole_core.adapters.ref import AdapterRef
from ramole_core.retrieval.encoder import Vectors


@dataclass(frozen=True)
class Match:
    """One retrieved adapter."""

    ref: AdapterRef
    similarity: float  # cosine, -1 … 1


class AdapterIndex:
    """FAISS inner-product index over unit vectors."""

    def __init__(self, width: int) -> None:
        self._faiss = faiss.IndexFlatIP(width)
        self._refs: list[AdapterRef] = []
        self._rows: dict[AdapterRef, int] = {}

    def __contains__(self, ref: AdapterRef) -> bool:
        return ref in self._rows

    def __len__(self) -> int:
        return len(self._refs)

    def add(self, ref: AdapterRef, vector: Vectors) -> None:
        """Adds one unit vector (D,); a ref that is there already is left alone."""
        if ref in self._rows:
            return
        self._faiss.add(np.ascontiguousarray(vector[None, :]))
        self._rows[ref] = len(self._refs)
        self._refs.append(ref)

    def search(self, queries: Vectors, k: int, among: frozenset[AdapterRef]) -> list[list[Match]]:
        """For each row of queries (N, D): the at most k best of `among`, best first."""
        rows = np.array(sorted(self._rows[r] for r in among if r in self._rows), dtype=np.int64)
        k = min(k, len(rows))
        if k == 0 or len(queries) == 0:
            return [[] for _ in range(len(queries))]
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(rows))  # type: ignore[call-arg]
        similarities, found = self._faiss.search(queries, k, params=chosen)  # (N, k) each
        return [
            [
                Match(self._refs[row], float(s))
                for s, row in zip(line_s, line_r, strict=True)
                if row >= 0
            ]
            for line_s, line_r in zip(similarities.tolist(), found.tolist(), strict=True)
        ]
