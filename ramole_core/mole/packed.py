"""The experts of some rows, side by side: one set of matrices for linears that read one input.

Dims: P experts, L linears of a group, S the experts' columns (the sum of their ranks) in a group,
R_r router rank, D_in and D_out sides of a linear. Packing makes the mixture of all rows a few
GEMMs, whatever the experts' ranks are. An expert's rank in a group is its largest over the group's
linears; rows of smaller ranks, and linears that it lacks, are zeros. Packs hold copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ramole_core.adapters.ref import AdapterRef

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # linear -> (R_r, D_in), (D_out, R_r)


@dataclass(frozen=True, eq=False)
class Columns:
    """Whose the S columns of a linear are: the same for every linear of a group. Groups with equal
    ranks share one object."""

    expert: torch.Tensor  # (S,) int64, place of the column's expert among the P
    expert_onehot: torch.Tensor  # (S, P) float32
    rank_onehot: torch.Tensor  # (S, R_max) float32, the column's row within its own A_i

    @classmethod
    def of(cls, ranks: tuple[tuple[int, int], ...], num: int, device: torch.device) -> "Columns":
        """From (place, rank) of each expert that the group has; `num` is P."""
        expert = [place for place, rank in ranks for _ in range(rank)]
        row = [r for _, rank in ranks for r in range(rank)]
        widest = max(rank for _, rank in ranks)  # R_max
        # One copy that the device need not be waited for; what follows is computed there.
        experts, rows = torch.tensor([expert, row]).to(device, non_blocking=True)  # (S,) each
        places = torch.arange(max(num, widest), device=device)
        return cls(
            experts,
            (experts[:, None] == places[:num]).float(),
            (rows[:, None] == places[:widest]).float(),
        )


@dataclass(frozen=True, eq=False)
class PackedGroup:
    """All experts in the linears of one group, and the router's part when there is one."""

    targets: tuple[str, ...]  # L: those linears of the group that at least one of the experts has
    a: torch.Tensor  # (L·S, D_in) model dtype: A of linear 1's experts, of linear 2's, …; with a
    # router (L·S + L·R_r, D_in): the linears' A_r behind them
    b: tuple[torch.Tensor, ...]  # L of (D_out, S) model dtype, times the scaling
    columns: Columns
    gram: torch.Tensor | None  # (L·R_r, L·S) float32, block-diagonal: B_rᵀ [B_1 … B_P] / √R_r of
    # each linear; None: no router for any of these linears

    @cached_property
    def by_column(self) -> torch.Tensor:
        """`expert_onehot` once for each linear, without a copy: (L, S, P)."""
        return self.columns.expert_onehot.expand(len(self.targets), -1, -1)

    @property
    def num_bytes(self) -> int:
        """Of the matrices."""
        gram = () if self.gram is None else (self.gram,)
        return sum(tensor.nbytes for tensor in (self.a, *self.b, *gram))

    def with_router(self, pairs: Pairs) -> "PackedGroup":
        """The same experts under the router `pairs`, in place of any other; differentiable in it.

        A_r and B_r are rounded to the model's dtype. A linear without a pair has zeros for A_r and
        for its block.
        """
        experts = self.a[: len(self.targets) * len(self.columns.expert)]  # (L·S, D_in)
        a, gram = under_router(self.targets, [experts], self.b, pairs)
        return replace(self, a=a, gram=gram)


@dataclass(frozen=True, eq=False)
class Packed:
    """`groups` has the linears that at least one expert has; those of a group share the object."""

    experts: tuple[AdapterRef, ...]  # P, sorted
    router: (
        str | None
    )  # the router version that the groups are under; None: none, or one in training
    groups: Mapping[str, PackedGroup]  # target -> its group

    @property
    def num_bytes(self) -> int:
        """Of all groups' matrices."""
        return sum(group.num_bytes for group in _unique(self.groups))

    def with_router(self, pairs: Pairs) -> "Packed":
        """The same experts under the router `pairs`, which has no version: router training."""
        routed = [group.with_router(pairs) for group in _unique(self.groups)]
        by_target = {target: group for group in routed for target in group.targets}
        return Packed(self.experts, None, by_target)


def _unique(groups: Mapping[str, PackedGroup]) -> list[PackedGroup]:
    return [group for target, group in groups.items() if target == group.targets[0]]


def under_router(
    targets: Sequence[str], a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], pairs: Pairs
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`a` and `gram` of a group under the router `pairs`, see PackedGroup: all its experts' A from
    top to bottom, and the L matrices (D_out, S) of its b."""
    found = [pairs.get(target) for target in targets]
    rank = next((pair[0].shape[0] for pair in found if pair is not None), None)  # R_r
    if rank is None:
        return torch.cat([*a]), None
    rows, blocks = [*a], []
    for side, pair in zip(b, found, strict=True):
        if pair is None:
            rows.append(a[0].new_zeros(rank, a[0].shape[1]))
            blocks.append(side.new_zeros(rank, side.shape[1], dtype=torch.float32))
        else:
            a_r, b_r = (matrix.to(side.dtype) for matrix in pair)  # (R_r, D_in), (D_out, R_r)
            rows.append(a_r)
            blocks.append(b_r.float().T @ side.float() / rank**0.5)  # (R_r, S)
    return torch.cat(rows), torch.block_diag(*blocks)
