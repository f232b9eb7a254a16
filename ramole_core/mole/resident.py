"""One adapter on the device.

Dims: R rank of an adapter in one linear, D_in and D_out sides of the linear. Safe to use from any
thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights
from ramole_core.errors import PromptError

MAX_WEIGHT: Final = 1e4
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Resident:
    """An adapter in the model's dtype. Its matrices are views of one piece of memory."""

    pairs: Mapping[str, Pair]  # target -> a (R, D_in), b (D_out, R)
    memory: torch.Tensor  # (numbers of all pairs,)

    def rank(self, target: str) -> int:
        """R in one linear; 0: it does not have the linear."""
        return len(self.pairs[target][0]) if target in self.pairs else 0


def check_fits(
    ref: AdapterRef, weights: LoraWeights, targets: Mapping[str, tuple[int, int]]
) -> None:
    """Raises PromptError unless every pair fits a target linear (D_out, D_in) and is sound."""
    for name, pair in weights.pairs.items():
        found = (pair.b.shape[0], pair.a.shape[1])
        if targets.get(name) != found or pair.b.shape[1] != pair.rank:
            raise PromptError(
                "adapter_unfit",
                f"adapter {ref}: {name} has shape {found}, the base model's is "
                f"{targets.get(name, 'missing')}",
            )
        # Packed columns are multiplied by 0 for other prompts: NaN and inf would leak.
        if not all(map(_is_sound, (pair.a, pair.b))):
            raise PromptError(
                "adapter_unfit",
                f"adapter {ref}: {name} has a weight that is no number or larger than "
                f"{MAX_WEIGHT:g} (scaling included)",
            )


def put_on_device(
    weights: LoraWeights, device: torch.device, dtype: torch.dtype, stream: torch.cuda.Stream | None
) -> Resident:
    """Converts on the host and copies once, on `stream` where there is one; done on return.

    The memory belongs to `stream`: who uses it on another one must `record_stream` it first.
    """
    sides = [side for pair in weights.pairs.values() for side in (pair.a, pair.b)]
    sizes = [side.numel() for side in sides]
    host = torch.empty(sum(sizes), dtype=dtype, pin_memory=stream is not None)
    for part, side in zip(host.split(sizes), sides, strict=True):
        part.view(side.shape).copy_(side)
    if stream is None:
        memory = host.to(device)
    else:
        with torch.cuda.stream(stream):
            memory = host.to(device, non_blocking=True)
        stream.synchronize()
    parts = [p.view(s.shape) for p, s in zip(memory.split(sizes), sides, strict=True)]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return Resident(dict(zip(weights.pairs, pairs, strict=True)), memory)


def _is_sound(tensor: torch.Tensor) -> bool:
    low, high = torch.aminmax(tensor)  # NaN when one is
    return bool(low >= -MAX_WEIGHT and high <= MAX_WEIGHT)
