"""Gate `cascade`: when its first pass is good enough, and which of the second pass's answers wins.

Numbers and strings only. Source: PAPER.md section 3, third prototype (hard choice by prior and
confidence); pooling equal answers is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CONFIDENCE_WEIGHT: Final = 3.0  # in standard deviations; chosen on the zoo (docs/method.md)
LEAST_SPREAD: Final = 1e-3


@dataclass(frozen=True)
class CascadeRule:
    """The constants of the cascade; confidences are mean log-probabilities, at most 0."""

    threshold: float  # θ: a first pass at least this confident is the answer
    confidence_weight: float  # w
    prior_weight: float = 1.0  # β
    pooled: bool = True  # equal answers add up their weights
    mixture_votes: bool = False  # the first pass's answer is a candidate too, of prior 1

    @classmethod
    def calibrated(cls, floor: float, spread: float) -> "CascadeRule":
        """For adapters that answer their own samples with a confidence below `floor` only rarely,
        and others' with confidences of standard deviation `spread`: θ = floor, w = 3 / spread.

        What a confident answer is depends on the model and on how long and free its answers are.
        """
        return cls(threshold=floor, confidence_weight=CONFIDENCE_WEIGHT / max(spread, LEAST_SPREAD))

    def log_weight(self, candidate: "Candidate") -> float:
        """β · log prior + w · confidence."""
        prior = self.prior_weight * candidate.log_prior if self.prior_weight else 0.0
        return prior + self.confidence_weight * candidate.confidence


@dataclass(frozen=True)
class Candidate:
    """One answer to choose from, and what speaks for it. A log prior may be -inf."""

    text: str
    confidence: float
    log_prior: float
    similarity: float  # -inf: of an expert without one, and of the mixture


def choose(candidates: Sequence[Candidate], rule: CascadeRule) -> int:
    """The place of the candidate whose answer wins; at least one is given.

        weight_i = exp(β · log_prior_i + w · confidence_i)
        answer   = argmax over the distinct texts t of Σ_{i: text_i = t} weight_i

    Unpooled, argmax_i weight_i. Ties go to the more similar. Of the candidates that gave the
    winning text, the one with the largest weight stands for it. The order of the candidates makes
    no difference to the text.
    """
    logs = [rule.log_weight(candidate) for candidate in candidates]
    top = max(logs)
    weights = [math.exp(v - top) if v > -math.inf else 0.0 for v in logs]  # of 1 at most
    pools: dict[object, list[int]] = {}
    for place, candidate in enumerate(candidates):
        pools.setdefault(candidate.text if rule.pooled else place, []).append(place)

    def worth(pool: list[int]) -> tuple[float, float, str]:
        total = math.fsum(weights[i] for i in pool)  # exact, so that the order cannot show
        similarity = max(candidates[i].similarity for i in pool)
        return total, similarity, candidates[pool[0]].text

    best = max(pools.values(), key=worth)
    return max(best, key=lambda i: (logs[i], candidates[i].similarity))
