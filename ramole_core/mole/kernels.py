"""The small operations of the mixture in one or two launches, for CUDA devices (not gate `fusion`).

Dims: N rows of a segment, P its experts, S columns, L linears that read the same input, R_r router
rank. What `layer.mixed_columns` does behind the product with A as a dozen calls of torch, each too
small to fill a GPU, two Triton kernels do: scores and prior, then softmax and α_i h_i; the second
alone where no router scores. The numbers are those of the formula, up to the order of sums.
CPUs keep to torch, and so does all that is trained: the kernels have no gradient. Triton is
imported when the first tensor on a CUDA device comes; where it is missing or cannot compile (it
needs a C compiler), torch stays.
Checked in Triton's interpreter and against its compiler. Nothing has been run or measured on a GPU.
"""

import logging
from functools import cache
from importlib.util import find_spec
from weakref import WeakKeyDictionary

import torch

from ramole_core.mole.packed import Columns, PackedGroup
from ramole_core.mole.plan import Segment

log = logging.getLogger(__name__)

_begins: WeakKeyDictionary[Columns, torch.Tensor] = WeakKeyDictionary()


def usable(x: torch.Tensor, segment: Segment) -> bool:
    """Whether `mixed_columns` is for this input of the linears and this segment. Never raises."""
    wanted = x.is_cuda and segment.fused is None and not torch.is_grad_enabled()
    return wanted and compiles(x.device)


def mixed_columns(product: torch.Tensor, group: PackedGroup, segment: Segment) -> torch.Tensor:
    """α_i A_i x of every column of every linear: product (L·S, N), with a router
    (L·S + L·R_r, N), contiguous -> (L, S, N) in the same dtype. No gate `fusion`."""
    from ramole_core.mole import triton_kernels  # triton

    operands = triton_kernels.Operands(
        product=product,
        begins=_begins_of(group.columns),
        gram=group.gram if segment.any_routed else None,
        prior=segment.prior,
        static=segment.static,
        foreign=segment.foreign,
        routed=segment.routed,
    )
    z, alpha = triton_kernels.launch(operands, len(group.targets), len(group.columns.expert))
    if alpha is None:
        segment.unscored.update(group.targets)
    else:
        segment.record(group, alpha)
    return z


@cache
def compiles(device: torch.device) -> bool:
    """Whether Triton is here and gives the right answer on the device; else says why, once."""
    if find_spec("triton") is None:
        log.info("%s: no triton, the mixture runs in torch", device)
        return False
    try:
        right = _trial(device)
    except Exception:  # whatever compilers, drivers and devices come up with
        log.warning("%s: triton fails, the mixture runs in torch", device, exc_info=True)
        return False
    if not right:
        log.warning("%s: triton's answer is wrong, the mixture runs in torch", device)
    return right


def _trial(device: torch.device) -> bool:
    """One linear, row, router rank and column, of the only expert: α = 1 whatever the score."""
    from ramole_core.mole import triton_kernels  # triton

    one = torch.ones(1, 1, device=device)
    operands = triton_kernels.Operands(
        product=torch.tensor([[3.0], [2.0]], device=device),  # h, q
        begins=torch.tensor([0, 1], dtype=torch.int32, device=device),
        gram=one,
        prior=one,
        static=one,
        foreign=None,
        routed=None,
    )
    z, alpha = triton_kernels.launch(operands, 1, 1)
    return z.item() == 3.0 and alpha is not None and alpha.item() == 1.0


def _begins_of(columns: Columns) -> torch.Tensor:
    """(P + 1,) int32, the first column of each expert and S: columns stand expert by expert."""
    if columns not in _begins:
        places = torch.arange(columns.expert_onehot.shape[1] + 1, device=columns.expert.device)
        _begins[columns] = torch.searchsorted(columns.expert, places, out_int32=True)
    return _begins[columns]
