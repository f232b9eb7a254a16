"""The mixture layer: a frozen linear plus the low-rank term of every row's own experts.

Dims: N rows (tokens) of a segment, P its experts, S the sum of their ranks ("columns"), L linears
that read the same input, R_r router rank, D width.
Source: RAMoLE eqs. 6-11 with G_i = B_rᵀ B_i (PAPER.md section 2, "Exact algebra worth using"):
h_i = A_i x ; s_i = (A_r x)ᵀ G_i h_i / √R_r ; y = W x + [B_1 … B_P] · concat(α_i h_i).
Every row's columns of foreign experts count as 0, whatever its numbers give there. No v_i of
width D_out is materialised; linears that read the same input share one product with all their A.
Scores and softmax are float32. Without a plan the layer gives exactly what the base linear gives.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from ramole_core.errors import RamoleError
from ramole_core.mole import kernels
from ramole_core.mole.gates import coefficients
from ramole_core.mole.packed import PackedGroup
from ramole_core.mole.plan import BatchPlan, Segment

# Rows up to which W xᵀ was faster than x Wᵀ on CPUs (torch 2.13, 2 cores, 32 rows: 1.4 x in both).
THIN_ROWS: Final = {torch.float32: 48, torch.bfloat16: 256}


class LayerError(RamoleError):
    """Raised when the base model hands a linear tokens that cannot be told apart by prompt."""

    code = "unsupported_model"


@dataclass(eq=False)
class PlanHolder:
    """What all mixture layers of one model share: the plan of the running forward, or None."""

    plan: BatchPlan | None = None


class MoleLinear(nn.Module):
    """Wraps one frozen linear. `target` is its name in the unwrapped model."""

    def __init__(self, base: nn.Linear, target: str, holder: PlanHolder) -> None:
        super().__init__()
        self.base = base
        self.target = target
        self.holder = holder

    @property
    def weight(self) -> torch.Tensor:
        """The base weight (D_out, D_in): some models look at it."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base bias (D_out,), if any."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """D_in."""
        return int(self.base.in_features)

    @property
    def out_features(self) -> int:
        """D_out."""
        return int(self.base.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, D_in), the plan's rows in order -> the same shape with D_out. Where no expert has
        the linear, x may have any shape."""
        plan = self.holder.plan
        y = self.base(x) if plan is None else base_output(self.base, x)
        for segment in () if plan is None else plan.segments:
            if self.target in segment.packed.groups:
                add_term(self._rows(y, x), x, self.target, segment)
            else:
                segment.unscored.add(self.target)
        return y.contiguous()

    def _rows(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y (…, D_out) as (rows, D_out). Raises LayerError when those are not the plan's rows."""
        assert self.holder.plan is not None
        num_rows = self.holder.plan.num_rows
        if x.numel() != num_rows * x.shape[-1]:
            raise LayerError(
                f"{self.target}: input of shape {tuple(x.shape)} for {num_rows} tokens; this model "
                "mixes prompts before the linear, exclude it from the adapters' targets"
            )
        return y.view(num_rows, y.shape[-1])


def base_output(base: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """W x + bias: x (…, D_in) -> (…, D_out), whose rows may lie side by side in memory."""
    if type(base) is not nn.Linear or not is_thin(x):
        y: torch.Tensor = base(x)
        return y.contiguous()
    num = x.numel() // x.shape[-1]
    columns = torch.mm(base.weight, x.reshape(num, x.shape[-1]).T)  # (D_out, N)
    if base.bias is not None:
        columns += base.bias[:, None]
    return columns.T.view(*x.shape[:-1], len(columns))


def is_thin(x: torch.Tensor) -> bool:
    """Whether x (…, D) has so few rows that W xᵀ is the faster product."""
    return x.device.type == "cpu" and x.numel() <= THIN_ROWS.get(x.dtype, 0) * x.shape[-1]


def add_term(y: torch.Tensor, x: torch.Tensor, target: str, segment: Segment) -> None:
    """y += Σ_i α_i B_i A_i x in the segment's rows, in place: y (rows, D_out), x (…, D_in).

    `target` is one that the segment's experts have.
    """
    group = segment.packed.groups[target]
    known = segment.shared.get(group)
    if known is None or known[0] is not x:  # the first linear that reads x
        rows = x.reshape(-1, x.shape[-1])[segment.begin : segment.end]  # (N, D_in)
        known = segment.shared[group] = (x, mixed_columns(rows, group, segment))
    place = group.targets.index(target)
    z, b = known[1][place], group.b[place]  # (S, N), (D_out, S)
    rows = y[segment.begin : segment.end]  # (N, D_out)
    if rows.stride(0) == 1:  # the output of a thin product
        rows.T.addmm_(b, z)
    else:
        rows.addmm_(z.T, b.T)
    if target == group.targets[-1]:  # nobody reads them any more
        del segment.shared[group]


def mixed_columns(x: torch.Tensor, group: PackedGroup, segment: Segment) -> torch.Tensor:
    """α_i A_i x of every column of every linear of the group: x (N, D_in) -> (L, S, N)."""
    if kernels.usable(x, segment):
        return kernels.mixed_columns(torch.mm(group.a, x.T), group, segment)
    num, columns = len(group.targets), group.columns
    width = num * len(columns.expert)  # L·S
    product = torch.mm(group.a, x.T).float()  # (L·S, N), with a router (L·S + L·R_r, N)
    h = product[:width].view(num, -1, len(x))  # (L, S, N)
    # Wider formats overflow only in rows that are lost anyway.
    foreign = segment.foreign_columns(columns) if x.dtype == torch.float16 else None  # (S, N)
    if foreign is not None:  # a foreign expert may overflow here, and 0 · inf is NaN
        h.masked_fill_(foreign, 0.0)
    if segment.any_routed and group.gram is not None:
        logits = router_logits(product[width:], h, group, segment)  # (L, P, N)
        alpha = coefficients(logits, segment.static, segment.routed)  # (L, P, N)
        segment.record(group, alpha)
        z = torch.bmm(group.by_column, alpha).mul_(h)  # (L, S, N)
    else:
        segment.unscored.update(group.targets)
        z = h * segment.static_columns(columns)
    if segment.fused is not None:
        z = torch.where(segment.fused, fused_columns(h, group, segment), z)
    z = z.to(x.dtype)
    if x.device.type != "cpu" or x.dtype == torch.float32 or is_thin(x):
        return z
    return z.mT.contiguous().mT  # row by row: thick products were up to 1.8 x as fast


def router_logits(
    q: torch.Tensor, h: torch.Tensor, group: PackedGroup, segment: Segment
) -> torch.Tensor:
    """s_i = qᵀ G_i h_i / √R_r plus log prior, float32: q (L·R_r, N), h (L, S, N) -> (L, P, N)."""
    assert group.gram is not None
    products = torch.mm(group.gram.T, q).view_as(h).mul_(h)  # (L, S, N), summed by expert below
    return torch.baddbmm(segment.prior, group.by_column.mT, products)


def fused_columns(h: torch.Tensor, group: PackedGroup, segment: Segment) -> torch.Tensor:
    """Columns of (1/k Σ B_i)(1/k Σ A_i) x: h (L, S, N) float32 -> (L, S, N) float32.

    Row r of the mean A meets column r of every B_i; smaller ranks count as padded with zeros.
    """
    alpha = segment.static_columns(group.columns)  # (S, N), 1/k for the row's own experts
    mean = group.columns.rank_onehot.T @ (h * alpha)  # (L, R_max, N), (1/k Σ A_i) x
    return alpha * (group.columns.rank_onehot @ mean)  # (L, S, N)
