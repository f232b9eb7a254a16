"""The published formula inside our own engine: same batches, same attention, other layers.

Dims: N rows (tokens of all prompts), P unique experts of the forward, R their rank, R_r router
rank, D_in and D_out sides of a linear.
Every v_i = B_i A_i x is materialised for all rows and all unique experts of the forward, the
router's scores come from v_i, and a mask makes every row's softmax its own experts' (RAMoLE
eqs. 6-11 and its batch inference). Reads the plan and the packs that our layers read; needs experts
of one rank that have all linears, and prompts that are all routed.
"""

from typing import Final

import torch
from torch import nn

from benchmarks.mixture import published
from ramole_core.mole.attach import MoleModel
from ramole_core.mole.layer import MoleLinear, PlanHolder, base_output
from ramole_core.mole.partition import Partition
from ramole_core.mole.plan import Segment
from ramole_core.mole.router import RouterWeights

Pair = tuple[torch.Tensor, torch.Tensor]
MANY: Final = 10**9


class PublishedLinear(nn.Module):
    """One linear of the published mixture. `router` is (A_r (R_r, D_in), B_r (D_out, R_r))."""

    def __init__(self, ours: MoleLinear, holder: PlanHolder, router: Pair) -> None:
        super().__init__()
        self.base = ours.base
        self.target = ours.target
        self.holder = holder
        self.router = router

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (1, N, D_in) -> (1, N, D_out)."""
        y = base_output(self.base, x)  # as fast as ours
        for segment in self.holder.plan.segments if self.holder.plan else ():
            rows = slice(segment.begin, segment.end)
            y[0, rows] += self._term(x[0, rows], segment)
        return y

    def _term(self, x: torch.Tensor, segment: Segment) -> torch.Tensor:
        """x (N, D_in) -> Σ_i α_i v_i (N, D_out)."""
        group = segment.packed.groups[self.target]
        place, num = group.targets.index(self.target), len(segment.packed.experts)
        width = len(group.columns.expert)  # P·R
        a = group.a[place * width : (place + 1) * width].view(num, -1, x.shape[-1])  # (P, R, D_in)
        b = group.b[place].view(-1, num, width // num).transpose(0, 1)  # (P, D_out, R)
        mask = segment.prior.T.to(x.dtype)[:, None]  # (N, 1, P), the prior; -inf: a foreign expert
        return published(x[:, None], a, b, *self.router, mask)[:, 0]


def publish(mole: MoleModel, router: RouterWeights) -> None:
    """Puts the published layers in the place of ours, in a model that no engine runs yet."""
    for name, module in list(mole.model.named_modules()):
        if isinstance(module, MoleLinear):
            a, b = (side.to(module.weight) for side in router.pairs[module.target])
            parent, _, child = name.rpartition(".")
            layer = PublishedLinear(module, mole.holder, (a, b))
            setattr(mole.model.get_submodule(parent), child, layer)


def one_segment() -> Partition:
    """Every forward's experts together, as published: no call is worth a second segment."""
    return Partition(MANY, lambda ref: 1)
