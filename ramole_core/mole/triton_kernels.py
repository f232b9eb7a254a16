"""The Triton kernels that `kernels` calls, and how they are launched. Importing it imports triton.

Dims: N rows, P experts, S columns of a linear, L linears, R_r router rank (layer.py); C a tile's
columns of one expert, M its rows. A program works on one expert of one linear and on M rows, and
goes through that expert's columns, however many they are. No dim is a compile-time constant: a
kernel is compiled once for a number format and for the optional tensors that are there, never for
a shape. Tensors are contiguous.
Nothing has been measured on a GPU: the sizes of the tiles are guesses.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

NUM_ROWS: Final = 32  # M
NUM_COLUMNS: Final = 16  # C
NUM_RANKS: Final = 16  # of the router, at a time
NUM_EXPERTS: Final = 64  # of a softmax, at a time

# Values of these are no reason to compile once more.
_SIZES: Final = ("num_linears", "num_columns", "num_experts", "num_rows", "router_rank")


@dataclass(frozen=True, eq=False)
class Operands:
    """What the kernels read of a group's L linears. Without `gram` α is the static one."""

    product: torch.Tensor  # (L·S, N) model dtype; with `gram`, or more, (L·S + L·R_r, N)
    begins: torch.Tensor  # (P + 1,) int32, each expert's first column among the S; S at the end
    gram: torch.Tensor | None  # (L·R_r, L·S) float32, block-diagonal
    prior: torch.Tensor  # (P, N) float32
    static: torch.Tensor  # (P, N) float32
    foreign: torch.Tensor | None  # (P, N) bool; None: nowhere
    routed: torch.Tensor | None  # (N,) bool; None: all rows


def launch(
    of: Operands, num_linears: int, num_columns: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(z (L, S, N) in the product's dtype, α (L, P, N) float32; None without `gram`)."""
    num_experts, num_rows = of.prior.shape
    grid = (num_linears * num_experts, triton.cdiv(num_rows, NUM_ROWS))
    z = of.product.new_empty(num_linears, num_columns, num_rows)
    logits = alpha = None
    with torch.cuda.device_of(of.product):  # triton launches on the current one
        if of.gram is not None:
            rank = of.gram.shape[0] // num_linears  # R_r
            logits = of.prior.new_empty(num_linears, num_experts, num_rows)
            alpha = torch.empty_like(logits)
            expert_logits[grid](
                *(of.product, of.begins, of.gram, of.prior, of.foreign, logits),
                *(num_linears, num_columns, num_experts, num_rows, rank),
                *(NUM_ROWS, NUM_COLUMNS, NUM_RANKS),
            )
        routed = None if logits is None else of.routed
        mixed_columns[grid](
            *(of.product, of.begins, logits, of.static, of.foreign, routed, alpha, z),
            *(num_columns, num_experts, num_rows),
            *(NUM_ROWS, NUM_COLUMNS, NUM_EXPERTS),
        )
    return z, alpha


@triton.jit(do_not_specialize=_SIZES)
def expert_logits(
    product: tl.tensor,
    begins: tl.tensor,
    gram: tl.tensor,
    prior: tl.tensor,
    foreign: tl.tensor,
    logits: tl.tensor,  # out
    num_linears: tl.tensor,
    num_columns: tl.tensor,
    num_experts: tl.tensor,
    num_rows: tl.tensor,
    router_rank: tl.tensor,
    M: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """logits (L, P, N): qᵀ G_i h_i / √R_r plus log prior, foreign columns being 0."""
    linear, expert = tl.program_id(0) // num_experts, tl.program_id(0) % num_experts
    n = tl.program_id(1) * M + tl.arange(0, M)
    here = n < num_rows
    own = own_rows(foreign, expert, n, num_rows)
    score = tl.load(prior + expert * num_rows + n, mask=here, other=0.0)  # (M,)
    width = num_linears * num_columns  # L·S
    behind = tl.load(begins + expert + 1)
    for start in range(tl.load(begins + expert), behind, C):
        s = start + tl.arange(0, C)
        column = linear * num_columns + s
        keys = tl.zeros([C, M], tl.float32)  # G_iᵀ q / √R_r
        for first in range(0, router_rank, R):
            r = first + tl.arange(0, R)
            row = linear * router_rank + r
            q = tile(product, width + row, n, num_rows, r < router_rank, here, 0.0)  # (R, M)
            g = tile(gram, row, column, width, r < router_rank, s < behind, 0.0)  # (R, C)
            keys = tl.dot(tl.trans(g), q.to(tl.float32), keys, input_precision="ieee")
        h = tile(product, column, n, num_rows, s < behind, own, 0.0)  # (C, M)
        score += tl.sum(keys * h.to(tl.float32), axis=0)
    place = (linear * num_experts + expert).to(tl.int64) * num_rows + n
    tl.store(logits + place, score, mask=here)


@triton.jit(do_not_specialize=_SIZES[1:4])
def mixed_columns(
    product: tl.tensor,
    begins: tl.tensor,
    logits: tl.tensor,
    static: tl.tensor,
    foreign: tl.tensor,
    routed: tl.tensor,
    alpha: tl.tensor,  # out
    z: tl.tensor,  # out
    num_columns: tl.tensor,
    num_experts: tl.tensor,
    num_rows: tl.tensor,
    M: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
) -> None:
    """alpha (L, P, N): softmax of the logits over P, in rows that are not routed the static one;
    all static, and not written, without logits. z (L, S, N): α_i h_i, 0 in foreign columns."""
    linear, expert = tl.program_id(0) // num_experts, tl.program_id(0) % num_experts
    n = tl.program_id(1) * M + tl.arange(0, M)
    here = n < num_rows
    own = own_rows(foreign, expert, n, num_rows)
    if logits is None:
        weight = tl.load(static + expert * num_rows + n, mask=here, other=0.0)  # (M,)
    else:
        weight = softmax_share(logits, linear, expert, n, num_experts, num_rows, P)
        if routed is not None:
            fixed = tl.load(static + expert * num_rows + n, mask=here, other=0.0)
            weight = tl.where(tl.load(routed + n, mask=here, other=0) != 0, weight, fixed)
        place = (linear * num_experts + expert).to(tl.int64) * num_rows + n
        tl.store(alpha + place, weight, mask=here)
    behind = tl.load(begins + expert + 1)
    for start in range(tl.load(begins + expert), behind, C):
        s = start + tl.arange(0, C)
        column = linear * num_columns + s
        h = tile(product, column, n, num_rows, s < behind, own, 0.0)  # (C, M)
        target = column[:, None].to(tl.int64) * num_rows + n[None, :]
        mixed = (h.to(tl.float32) * weight[None, :]).to(z.dtype.element_ty)
        tl.store(z + target, mixed, mask=(s < behind)[:, None] & here[None, :])


@triton.jit
def tile(
    matrix: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    fill: tl.tensor,
) -> tl.tensor:
    """Places (row, column) of a matrix that is `width` wide; `fill` outside `rows`, `columns`."""
    place = row[:, None].to(tl.int64) * width + column[None, :]
    return tl.load(matrix + place, mask=rows[:, None] & columns[None, :], other=fill)


@triton.jit
def own_rows(foreign: tl.tensor, expert: tl.tensor, n: tl.tensor, num_rows: tl.tensor) -> tl.tensor:
    """(M,) bool, the expert is the row's own."""
    own = n < num_rows
    if foreign is not None:
        own = own & (tl.load(foreign + expert * num_rows + n, mask=own, other=1) == 0)
    return own


@triton.jit
def softmax_share(
    logits: tl.tensor,
    linear: tl.tensor,
    expert: tl.tensor,
    n: tl.tensor,
    num_experts: tl.tensor,
    num_rows: tl.tensor,
    P: tl.constexpr,
) -> tl.tensor:
    """(M,) of the expert's softmax over the linear's logits (P, N)."""
    here = n < num_rows
    top = tl.full(n.shape, float("-inf"), tl.float32)  # (M,)
    for start in range(0, num_experts, P):
        p = start + tl.arange(0, P)
        row = linear * num_experts + p
        block = tile(logits, row, n, num_rows, p < num_experts, here, float("-inf"))  # (P, M)
        top = tl.maximum(top, tl.max(block, axis=0))
    total = tl.zeros_like(top)
    for start in range(0, num_experts, P):
        p = start + tl.arange(0, P)
        row = linear * num_experts + p
        block = tile(logits, row, n, num_rows, p < num_experts, here, float("-inf"))
        total += tl.sum(tl.exp(block - top[None, :]), axis=0)
    place = (linear * num_experts + expert).to(tl.int64) * num_rows + n
    return tl.exp(tl.load(logits + place, mask=here, other=0.0) - top) / total
