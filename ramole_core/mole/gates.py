"""From one prompt's experts to the coefficients that mix them.

Dims: B prompts of a batch, T tokens, K experts of one prompt, P unique experts of the batch.
Every gate is one formula, `y = W x + Σ_i α_i B_i A_i x`, with its own α (PAPER.md section 2);
only `fusion` transforms the hidden columns as well (`layer.fused_columns`). Gates:

- `selection`  α = 1 for the most similar expert (without similarities: the first), 0 for others.
- `mixture`    α_i = 1/k.
- `fusion`     parameters averaged: (1/k Σ B_i)(1/k Σ A_i), cross terms included.
- `weights`    α_i as the caller gave them.
- `mole-plain` α = softmax(s), s_i the router's score (RAMoLE eqs. 6-11).
- `mole`       α = softmax(s + log_softmax(sim / τ)): the router's scores over the retrieval prior.
- `cascade`    α of `mole`: its first pass. What may come after it: engine/cascade.py.

Without a router s = 0, so `mole` is the retrieval prior alone and `mole-plain` cannot be answered.
An expert that lacks a target linear has v_i = 0 there, hence s_i = 0 by the paper's equations: it
keeps its place in the softmax (and its share of the weight) but contributes nothing to that linear.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import PromptError

TAU: Final = 0.05
GATES: Final = ("mole", "cascade", "mole-plain", "selection", "mixture", "fusion", "weights")
PRIOR_GATES: Final = ("mole", "cascade")
ROUTED_GATES: Final = (*PRIOR_GATES, "mole-plain")


@dataclass(frozen=True)
class Mix:
    """How one prompt mixes its experts. Raises PromptError when the gate cannot be computed.

    `similarities` and `weights` are aligned with `experts`; an expert may appear only once.
    `tau` is τ, the temperature of the retrieval prior.
    """

    gate: str
    experts: tuple[AdapterRef, ...] = ()
    similarities: tuple[float | None, ...] = ()
    weights: tuple[float | None, ...] = ()
    router: str | None = None
    tau: float = TAU

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise PromptError("bad_gate", f"gate {self.gate!r}: use one of {', '.join(GATES)}")
        if len(set(self.experts)) != len(self.experts):
            names = ", ".join(map(str, self.experts))
            raise PromptError("duplicate_expert", f"an expert stands twice among {names}")
        if self.gate == "mole-plain" and self.experts and self.router is None:
            raise PromptError(
                "no_router", "gate mole-plain needs a trained router; train one or use gate mole"
            )
        self._check_values()

    def _check_values(self) -> None:
        for given in (self.similarities, self.weights):
            if given and len(given) != len(self.experts):
                raise PromptError("bad_weight", "one similarity and one weight for each expert")
        known = [s for s in self.similarities if s is not None]
        if self.gate in PRIOR_GATES and known and len(known) < len(self.experts):
            message = f"gate {self.gate} needs every similarity, or none"
            raise PromptError("bad_similarity", message)
        if self.gate == "weights" and (
            len(self.weights) < len(self.experts) or any(w is None for w in self.weights)
        ):
            raise PromptError("bad_weight", "gate weights needs a weight for every expert")
        if not all(map(math.isfinite, [*known, *(w for w in self.weights if w is not None)])):
            raise PromptError("bad_weight", "similarities and weights must be finite numbers")
        if not 0 < self.tau < math.inf:
            raise PromptError("bad_request", f"tau={self.tau}: a finite number above 0")

    @property
    def routed(self) -> bool:
        """True when the router's scores decide: α depends on the token and the layer."""
        return self.gate in ROUTED_GATES and self.router is not None and bool(self.experts)

    def active(self) -> tuple[int, ...]:
        """Places of the experts that can have an effect: only these need to be loaded."""
        everyone = tuple(range(len(self.experts)))
        if self.gate == "selection":
            return everyone and (max(everyone, key=self._similarity),)
        if self.gate == "weights":
            return tuple(i for i in everyone if self.weights[i] != 0)
        return everyone

    def log_prior(self) -> list[float]:
        """log softmax(sim / τ) over the K experts; 0 for gates and prompts without a prior."""
        known = [s for s in self.similarities if s is not None]
        if self.gate not in PRIOR_GATES or not known:
            return [0.0] * len(self.experts)
        logits = [(s - max(known)) / self.tau for s in known]  # at most 0: the smallest τ will do
        log_total = math.log(sum(map(math.exp, logits)))
        return [v - log_total for v in logits]

    def static_weights(self) -> list[float]:
        """α of the K experts when every score is 0: exact for all gates that are not routed."""
        num = len(self.experts)
        if num == 0:
            return []
        if self.gate == "selection":
            return [float(i in self.active()) for i in range(num)]
        if self.gate == "weights":
            return [float(w) for w in self.weights if w is not None]
        if self.gate in ("mixture", "fusion"):
            return [1.0 / num] * num
        prior = [math.exp(v) for v in self.log_prior()]
        return [v / sum(prior) for v in prior]

    def _similarity(self, place: int) -> float:
        value = self.similarities[place] if self.similarities else None
        return -math.inf if value is None else value


def coefficients(
    logits: torch.Tensor, static: torch.Tensor, routed: torch.Tensor | None
) -> torch.Tensor:
    """α (L, P, N) float32 of N rows in L linears, when some rows are routed.

    logits (L, P, N) float32: score plus log prior, -inf where an expert is not the row's;
    static (P, N) float32 α of the rows that are not routed; routed (N,) bool, None: all are.
    """
    alpha = torch.softmax(logits, dim=1)  # (L, P, N)
    return alpha if routed is None else torch.where(routed, alpha, static)
