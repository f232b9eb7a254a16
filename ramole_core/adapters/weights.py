"""The weights of one LoRA adapter as the mixture takes them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LoraPair:
    """One target linear of one adapter; the scaling (alpha/r or alpha/sqrt(r)) is folded into b."""

    a: torch.Tensor  # (R, D_in) float32, on the CPU
    b: torch.Tensor  # (D_out, R) float32, on the CPU, times the scaling

    @property
    def rank(self) -> int:
        """R of this linear; it may differ between the linears of one adapter."""
        return self.a.shape[0]


@dataclass(frozen=True)
class LoraWeights:
    """An adapter: pairs by the name of the target linear, e.g. `model.layers.0.mlp.up_proj`."""

    pairs: dict[str, LoraPair]
