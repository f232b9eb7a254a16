"""The mixture layer: a frozen linear plus the low-rank term of every prompt's own experts.

Dims: B prompts, T tokens, P unique experts, S = sum of their ranks, R_r router rank, D width.
Source: RAMoLE eqs. 6-11 with G_i = B_rᵀ B_i (PAPER.md section 2, "Exact algebra worth using"):
h_i = A_i x ; s_i = (A_r x)ᵀ G_i h_i / √R_r ; y = W x + [B_1 … B_P] · concat(α_i h_i).
Every prompt's columns of foreign experts count as 0, whatever its tokens give there. No v_i of
width D_out is materialised. Without a plan the layer gives exactly what the base linear gives.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ramole_core.errors import RamoleError
from ramole_core.mole.gates import coefficients
from ramole_core.mole.packed import PackedLinear
from ramole_core.mole.plan import BatchPlan


class LayerError(RamoleError):
    """Raised when the base model hands a linear tokens that cannot be told apart by prompt."""

    code = "unsupported_model"


@dataclass(eq=False)
class PlanHolder:
    """What all mixture layers of one model share: the plan of the running batch, or None."""

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
        """x (B, T, D_in), (B, …, T, D_in) or flattened (B·T, D_in) -> the same shape with D_out."""
        y: torch.Tensor = self.base(x)
        plan = self.holder.plan
        if plan is None or not plan.packed.experts:
            return y
        packed = plan.packed.linears.get(self.target)
        if packed is None:
            plan.record(None)
            return y
        term = low_rank_term(_by_prompt(x, plan, self.target), packed, plan)
        return y + term.view(y.shape)


def low_rank_term(x: torch.Tensor, packed: PackedLinear, plan: BatchPlan) -> torch.Tensor:
    """Σ_i α_i B_i A_i x of every prompt's experts: x (B, T, D_in) -> (B, T, D_out)."""
    h = F.linear(x, packed.a)  # (B, T, S)
    own = plan.own_columns(packed.columns)  # (B, 1, S)
    if own is not None:
        h = h.where(own, 0.0)  # a foreign expert may overflow here, and 0 · inf is NaN
    z = h * column_coefficients(x, h, packed, plan)  # (B, T, S) float32
    if plan.any_fused:
        z = torch.where(plan.fused[:, None, None], fused_columns(h, packed, plan), z)
    return F.linear(z.to(x.dtype), packed.b)  # (B, T, D_out)


def column_coefficients(
    x: torch.Tensor, h: torch.Tensor, packed: PackedLinear, plan: BatchPlan
) -> torch.Tensor:
    """α of each packed column: (B, 1, S) when no score is needed, else (B, T, S); float32."""
    if not plan.any_routed or packed.gram is None:
        plan.record(None)
        return plan.static_columns(packed.columns)
    scores = router_scores(x, h, packed)  # (B, T, P)
    alpha = coefficients(scores, plan.prior, plan.static, plan.routed)  # (B, T, P)
    plan.record(alpha)
    return alpha.index_select(-1, packed.columns.expert)  # (B, T, S)


def router_scores(x: torch.Tensor, h: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """s_i = qᵀ G_i h_i / √R_r: x (B, T, D_in), h (B, T, S) -> (B, T, P) float32."""
    assert packed.gram is not None and packed.router_a is not None
    q = F.linear(x, packed.router_a).float()  # (B, T, R_r)
    products = (q @ packed.gram) * h.float()  # (B, T, S), summed over each expert's columns below
    return products @ packed.columns.expert_onehot / packed.gram.shape[0] ** 0.5  # (B, T, P)


def fused_columns(h: torch.Tensor, packed: PackedLinear, plan: BatchPlan) -> torch.Tensor:
    """Columns of (1/k Σ B_i)(1/k Σ A_i) x: h (B, T, S) -> (B, T, S) float32.

    Row r of the mean A meets column r of every B_i; smaller ranks count as padded with zeros.
    """
    alpha = plan.static_columns(packed.columns)  # (B, 1, S), 1/k for the prompt's own experts
    mean = (h * alpha) @ packed.columns.rank_onehot  # (B, T, R_max), (1/k Σ A_i) x
    return alpha * (mean @ packed.columns.rank_onehot.T)  # (B, T, S)


def _by_prompt(x: torch.Tensor, plan: BatchPlan, target: str) -> torch.Tensor:
    """x as (B, T, D_in). Some models flatten prompts and tokens into one dim before a linear,
    others have dims between the prompt and the width (heads): those count as tokens."""
    num = len(plan.mixes)
    if x.dim() >= 3 and x.shape[0] == num:
        return x.flatten(1, -2)
    if x.dim() == 2 and x.shape[0] == num * plan.num_tokens:
        return x.view(num, plan.num_tokens, -1)
    raise LayerError(
        f"{target}: input of shape {tuple(x.shape)} for {num} prompts of {plan.num_tokens} tokens; "
        "this model mixes prompts before the linear, exclude it from the adapters' targets"
    )
