"""How well an encoder tells adapters apart, judged by the adapters' own samples alone.

Every sample is a query; its own adapter is described by the other samples ("leave one out"), all
other adapters by all of theirs. Dims: N adapters, M samples of one adapter, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ramole_core.errors import InvalidInputError
from ramole_core.retrieval.card import EncoderScores
from ramole_core.retrieval.encoder import Vectors, adapter_vector

FLOOR_QUANTILE: Final = 0.01


@dataclass(frozen=True)
class LeaveOneOut:
    """Cosines of every sample to every adapter, its own described without it."""

    similarities: npt.NDArray[np.float32]  # (Q, N), Q samples of all adapters in order
    own: npt.NDArray[np.int64]  # (Q,) place of the sample's adapter

    @classmethod
    def of(cls, samples: Sequence[Vectors]) -> "LeaveOneOut":
        """From the unit vectors (M, D) of each adapter's samples.

        Raises InvalidInputError when an adapter has fewer than two: nothing would describe it.
        """
        if any(len(vectors) < 2 for vectors in samples):
            raise InvalidInputError("leave-one-out needs two samples of every adapter")
        described = np.stack([adapter_vector(vectors) for vectors in samples])  # (N, D)
        blocks = [vectors @ described.T for vectors in samples]  # (M, N) each
        for place, (block, vectors) in enumerate(zip(blocks, samples, strict=True)):
            rest = vectors.sum(axis=0) - vectors  # (M, D), all samples but the row's own
            rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12)
            block[:, place] = (vectors * rest).sum(axis=1)
        own = np.repeat(np.arange(len(samples)), [len(vectors) for vectors in samples])
        return cls(np.concatenate(blocks), own)

    def rows(self, chosen: npt.NDArray[np.bool_]) -> "LeaveOneOut":
        """The samples marked in `chosen` (Q,) alone, still against all adapters."""
        return LeaveOneOut(self.similarities[chosen], self.own[chosen])

    def scores(self) -> EncoderScores:
        """Accuracy by place of the own adapter; a tie counts against it."""
        own = self._own_similarity()[:, None]  # (Q, 1)
        place = (self.similarities >= own).sum(axis=1)  # (Q,), 1 is best

        def top(k: int) -> float:
            return round(100.0 * float(np.mean(place <= k)), 2)

        return EncoderScores(
            num_prompts=len(place), top1=top(1), top3=top(3), top5=top(5), top8=top(8)
        )

    def floor(self) -> float:
        """The similarity to their own adapter that all but 1 % of the samples reach."""
        return round(float(np.quantile(self._own_similarity(), FLOOR_QUANTILE)), 4)

    def _own_similarity(self) -> npt.NDArray[np.float32]:
        return np.take_along_axis(self.similarities, self.own[:, None], axis=1)[:, 0]
