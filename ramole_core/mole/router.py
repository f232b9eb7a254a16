"""The router of the on-the-fly mixture: one pair {A_r, B_r} for each target linear.

Dims: R_r router rank, D_in and D_out sides of a linear. The scores that these weights give are
s_i = ⟨A_r x, B_rᵀ B_i A_i x⟩ / √R_r (RAMoLE eqs. 6-11). A target without a pair has s = 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError

from ramole_core.errors import InvalidInputError
from ramole_core.mole.card import CARD_FILE, WEIGHTS_FILE, RouterCard

__all__ = [
    "CARD_FILE",
    "WEIGHTS_FILE",
    "RouterCard",
    "RouterSource",
    "RouterWeights",
    "random_router",
]


@dataclass(frozen=True)
class RouterWeights:
    """`pairs`: target linear -> (a_r (R_r, D_in), b_r (D_out, R_r)), float32 on the CPU."""

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    card: RouterCard

    @property
    def num_parameters(self) -> int:
        """Numbers in all pairs together."""
        return sum(side.numel() for pair in self.pairs.values() for side in pair)

    def to_files(self) -> dict[str, bytes]:
        """The two files of a router by name."""
        tensors = {
            f"{target}.{side}": tensor.detach().cpu().float().contiguous()
            for target, pair in self.pairs.items()
            for side, tensor in zip(("a", "b"), pair, strict=True)
        }
        card = self.card.model_dump_json(indent=2).encode()
        return {WEIGHTS_FILE: safetensors.torch.save(tensors), CARD_FILE: card}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "RouterWeights":
        """Reads what `to_files` gave. Raises InvalidInputError when the files are not a router."""
        try:
            card = RouterCard.model_validate_json(files[CARD_FILE])
            tensors = safetensors.torch.load(files[WEIGHTS_FILE])
            targets = sorted({name.rpartition(".")[0] for name in tensors})
            pairs = {name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in targets}
        except (KeyError, ValidationError, safetensors.SafetensorError) as e:
            raise InvalidInputError(f"not a router: {e}") from e
        return cls(pairs, card)

    def save(self, folder: Path) -> None:
        """Writes the two files into `folder`, which is made when it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.to_files().items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> "RouterWeights":
        """Reads the two files of `folder`. Raises InvalidInputError."""
        try:
            files = {name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, CARD_FILE)}
        except OSError as e:
            raise InvalidInputError(f"{folder}: not a router: {e}") from e
        return cls.from_files(files)

    def check_fits(self, targets: Mapping[str, tuple[int, int]]) -> None:
        """Raises InvalidInputError unless every pair fits a target linear (D_out, D_in)."""
        for name, (a, b) in self.pairs.items():
            d_out, d_in = targets.get(name, (0, 0))
            wanted = ((self.card.rank, d_in), (d_out, self.card.rank))
            if (tuple(a.shape), tuple(b.shape)) != wanted:
                raise InvalidInputError(
                    f"router: {name} has shapes {tuple(a.shape)}, {tuple(b.shape)}; the base model "
                    f"needs {wanted[0]}, {wanted[1]}; train a router for this base model"
                )


class RouterSource(Protocol):
    """Where routers come from."""

    def load_router(self, version: str) -> RouterWeights:
        """The weights of router `version`. May raise anything. Many threads may call it at the same
        time."""
        ...


def random_router(
    targets: Mapping[str, tuple[int, int]], rank: int, generator: torch.Generator
) -> RouterWeights:
    """A router with normal weights for `targets` (name -> (D_out, D_in)); for tests.

    Scale: x and v of unit size give scores of unit size.
    """
    pairs = {}
    for name, (d_out, d_in) in targets.items():
        a = torch.randn(rank, d_in, generator=generator) / d_in**0.5  # (R_r, D_in)
        b = torch.randn(d_out, rank, generator=generator) / d_out**0.5  # (D_out, R_r)
        pairs[name] = (a, b)
    return RouterWeights(pairs, _untrained(rank))


def _untrained(rank: int) -> RouterCard:
    return RouterCard(
        base="",
        rank=rank,
        adapters=(),
        seed=0,
        encoder=None,
        prior=False,
        candidates=None,
        dropout=0.0,
        steps=0,
        held_out_before=None,
        held_out_after=None,
        created_at="1970-01-01T00:00:00+00:00",
    )
