"""Arrow (Ostapenko et al., arXiv 2405.11157): experts chosen by their weights alone, no training.

Dims: N rows of a segment, P its experts, S sum of their ranks, D_in, D_out sides of a linear.
The prototype of expert i in a linear is the top right singular vector p_i of B_i A_i; per token
α = softmax(|⟨p_i, x⟩|) over the row's own experts (PEFT's `temperature` is 1 by default). An
expert that lacks the linear has p_i = 0, as in the product's gates. Only this benchmark uses it:
the layer stands in the place of the product's and reads the same plan.
"""

import torch
from torch import nn

from benchmarks.method.cases import ZooSource
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraPair
from ramole_core.mole.layer import MoleLinear, PlanHolder
from ramole_core.mole.packed import PackedGroup
from ramole_core.mole.plan import Segment

Prototypes = dict[AdapterRef, torch.Tensor]  # (D_in,) of each expert that has the linear


class ArrowLinear(nn.Module):
    """Wraps one frozen linear, like MoleLinear; whatever the prompt's gate, it weighs by Arrow."""

    def __init__(self, base: nn.Linear, target: str, holder: PlanHolder, known: Prototypes) -> None:
        super().__init__()
        self.base = base
        self.target = target
        self.holder = holder
        self.known = known

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, D_in), the plan's rows in order -> the same shape with D_out."""
        y: torch.Tensor = self.base(x)
        plan = self.holder.plan
        for segment in () if plan is None else plan.segments:
            group = segment.packed.groups.get(self.target)
            if group is not None:
                rows = slice(segment.begin, segment.end)
                y.flatten(0, -2)[rows] += self._term(x.flatten(0, -2)[rows], group, segment)
        return y

    def _term(self, x: torch.Tensor, group: PackedGroup, segment: Segment) -> torch.Tensor:
        """x (N, D_in) -> (N, D_out)."""
        zero = x.new_zeros(x.shape[-1])
        stack = [self.known.get(ref, zero) for ref in segment.packed.experts]
        logits = (x @ torch.stack(stack).T).abs()  # (N, P)
        if segment.foreign is not None:
            logits = logits.masked_fill(segment.foreign.T, -torch.inf)
        alpha = torch.softmax(logits, dim=-1)  # (N, P)
        place, owners = group.targets.index(self.target), group.columns.expert
        a = group.a[place * len(owners) : (place + 1) * len(owners)]  # (S, D_in)
        term: torch.Tensor = (x @ a.T * alpha[:, owners]) @ group.b[place].T  # (N, D_out)
        return term


def use_arrow(model: nn.Module, experts: list[AdapterRef], source: ZooSource) -> None:
    """Puts Arrow's layers in the place of an attached model's mixture layers."""
    weights = {ref: source.load(ref).pairs for ref in experts}
    for name, module in list(model.named_modules()):
        if isinstance(module, MoleLinear):
            target = module.target
            known = {ref: prototype(p[target]) for ref, p in weights.items() if target in p}
            parent, _, child = name.rpartition(".")
            layer = ArrowLinear(module.base, target, module.holder, known)
            setattr(model.get_submodule(parent), child, layer)


def prototype(pair: LoraPair) -> torch.Tensor:
    """The top right singular vector of b @ a: (D_in,), its sign arbitrary.

    b = Q R (thin), so that b a and the small R a have the same right singular vectors.
    """
    r = torch.linalg.qr(pair.b, mode="r").R  # (R, R)
    top: torch.Tensor = torch.linalg.svd(r @ pair.a, full_matrices=False).Vh[0]  # (D_in,)
    return top
