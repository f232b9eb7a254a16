"""What the numbers of an adapter must satisfy. Needs torch.

Finite, not all zero, and bounded: |A| and |scaling * B| up to MAX_VALUE (what float16 holds), and
per linear ||scaling * B|| * ||A|| up to MAX_NORM, far above any trained adapter (below 100 as a
rule); beyond it an adapter would drown its partners in every mixture.
"""

from typing import Final

import torch

from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.errors import AdapterRefusedError

MAX_VALUE: Final = 65504.0
MAX_NORM: Final = 1e5


def check_values(weights: LoraWeights) -> None:
    """Raises AdapterRefusedError with reason not_finite, too_large_values or no_effect."""
    for target, pair in weights.pairs.items():
        _check_pair(target, pair)
    if not any(bool(pair.a.any()) and bool(pair.b.any()) for pair in weights.pairs.values()):
        raise AdapterRefusedError(
            "no_effect", "every B (or A) is zero: the adapter changes nothing; was it trained?"
        )


def _check_pair(target: str, pair: LoraPair) -> None:
    for part, tensor in (("A", pair.a), ("B", pair.b)):
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterRefusedError(
                "not_finite", f"{target}.lora_{part}.weight holds NaN or infinity"
            )
        largest = tensor.abs().max().item()
        if largest > MAX_VALUE:
            raise AdapterRefusedError(
                "too_large_values",
                f"{target}.lora_{part}: value {largest:.3g} (with scaling), limit {MAX_VALUE:g}",
            )
    norm = (pair.a.norm() * pair.b.norm()).item()
    if norm > MAX_NORM:
        raise AdapterRefusedError(
            "too_large_values", f"{target}: norm of the change {norm:.3g}, limit {MAX_NORM:g}"
        )
