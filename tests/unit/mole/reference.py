"""The slow truth: PAPER.md section 2 written out for one prompt at a time.

Every v_i = B_i A_i x is materialised, token by token, linear by linear; no Gram matrix, no packing,
no batch. `reference_logits` runs a copy of the base model whose linears are replaced by this.
"""

import copy
import math

import torch
from torch import nn

from ramole_core.adapters.weights import LoraWeights
from ramole_core.mole.attach import target_linears
from ramole_core.mole.gates import Mix
from ramole_core.mole.router import RouterWeights


class SlowLinear(nn.Module):
    def __init__(self, base, name, mix, experts, router):
        super().__init__()
        self.base, self.name, self.mix, self.experts, self.router = base, name, mix, experts, router
        self.alphas = []  # per call: (T, K)

    def forward(self, x):
        y = self.base(x)  # (1, T, D_out)
        if not self.mix.experts:
            return y
        tokens = [self.token(v) for v in x[0]]
        self.alphas.append(torch.tensor([alpha for _, alpha in tokens]))
        return y + torch.stack([delta for delta, _ in tokens])[None]

    def token(self, x):
        pairs = [expert.pairs.get(self.name) for expert in self.experts]
        width = self.base.weight.shape[0]
        k = len(pairs)
        if self.mix.gate == "fusion":
            return self.fusion(x, pairs, width), [1 / k] * k
        v = [p.b @ (p.a @ x) if p else torch.zeros(width) for p in pairs]
        alpha = self.alpha(x, v)
        return sum(a * vi for a, vi in zip(alpha, v, strict=True)), alpha

    def alpha(self, x, v):
        mix, k = self.mix, len(v)
        if mix.gate == "selection":
            best = max(range(k), key=lambda i: mix.similarities[i])
            return [float(i == best) for i in range(k)]
        if mix.gate == "mixture":
            return [1 / k] * k
        if mix.gate == "weights":
            return list(mix.weights)
        scores = [0.0] * k
        if mix.router is not None and self.name in self.router.pairs:
            a_r, b_r = self.router.pairs[self.name]
            q = a_r @ x
            scores = [float(q @ (b_r.T @ vi)) / math.sqrt(a_r.shape[0]) for vi in v]
        if mix.gate in ("mole", "cascade"):
            total = sum(math.exp(s / mix.tau) for s in mix.similarities)
            scores = [
                s + math.log(math.exp(sim / mix.tau) / total)
                for s, sim in zip(scores, mix.similarities, strict=True)
            ]
        total = sum(math.exp(s) for s in scores)
        return [math.exp(s) / total for s in scores]

    def fusion(self, x, pairs, width):
        rank = max((p.rank for p in pairs if p), default=1)
        a = torch.zeros(rank, x.shape[0])
        b = torch.zeros(width, rank)
        for p in pairs:
            if p:
                a[: p.rank] += p.a / len(pairs)
                b[:, : p.rank] += p.b / len(pairs)
        return b @ (a @ x)


def slow_model(
    model: nn.Module, mix: Mix, experts: list[LoraWeights], router: RouterWeights | None
) -> nn.Module:
    """A copy of the unwrapped `model` that answers one prompt with `mix`."""
    slow = copy.deepcopy(model)
    for name, linear in target_linears(slow).items():
        parent, _, child = name.rpartition(".")
        setattr(slow.get_submodule(parent), child, SlowLinear(linear, name, mix, experts, router))
    return slow


@torch.inference_mode()
def reference(
    model: nn.Module,
    ids: list[int],
    mix: Mix,
    experts: list[LoraWeights],
    router: RouterWeights | None = None,
) -> tuple[torch.Tensor, list[float]]:
    """Logits (T, V) of one prompt, and the mean gate weights at its last position."""
    slow = slow_model(model, mix, experts, router)
    logits = slow(torch.tensor([ids])).logits[0]
    alphas = [m.alphas[-1][-1] for m in slow.modules() if isinstance(m, SlowLinear) and m.alphas]
    return logits, torch.stack(alphas).mean(0).tolist() if alphas else []
