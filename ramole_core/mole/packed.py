"""The experts of one batch, side by side: one pair of matrices for each target linear.

Dims: P unique experts of the batch, S = sum of their ranks in one linear ("columns"), R_r router
rank, D_in and D_out sides of the linear. Packing makes the mixture of all prompts two GEMMs,
whatever the experts' ranks are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ramole_core.adapters.ref import AdapterRef


@dataclass(frozen=True, eq=False)
class Columns:
    """Whose the S columns of a packed linear are. Linears with equal ranks share one object."""

    expert: torch.Tensor  # (S,) int64, place of the column's expert among the P
    expert_onehot: torch.Tensor  # (S, P) float32
    rank_onehot: torch.Tensor  # (S, R_max) float32, the column's row within its own A_i

    @classmethod
    def of(cls, ranks: tuple[tuple[int, int], ...], num: int, device: torch.device) -> "Columns":
        """From (place, rank) of each expert that has the linear; `num` is P."""
        expert = [place for place, rank in ranks for _ in range(rank)]
        row = [r for _, rank in ranks for r in range(rank)]
        experts = torch.tensor(expert, device=device)  # (S,)
        rows = torch.tensor(row, device=device)  # (S,)
        return cls(
            experts,
            torch.nn.functional.one_hot(experts, num).float(),
            torch.nn.functional.one_hot(rows).float(),
        )


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """All experts of the batch in one target linear."""

    a: torch.Tensor  # (S, D_in), the model's dtype
    b: torch.Tensor  # (D_out, S), the model's dtype, times each expert's scaling
    columns: Columns
    gram: torch.Tensor | None  # (R_r, S) float32, [G_1 … G_P], G_i = B_rᵀ B_i; None: no router here
    router_a: torch.Tensor | None  # (R_r, D_in), the model's dtype; None: no router here


@dataclass(frozen=True, eq=False)
class Packed:
    """`linears` holds only the targets that at least one of the experts has."""

    experts: tuple[AdapterRef, ...]  # P
    linears: Mapping[str, PackedLinear]
