"""One training run of a router, prepared: examples split, draws, the loss, the first weights."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import InvalidInputError
from ramole_core.mole.attach import MoleModel
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.gates import TAU
from ramole_core.mole.packed import Pairs
from ramole_core.mole.router_examples import (
    MIN_EXPERTS,
    Draw,
    Example,
    batches,
    draw_candidates,
    drop_experts,
    split,
    training_adapters,
)
from ramole_core.mole.router_loss import RouterLoss

MEASURE_EVERY: Final = 10  # steps at least between two measurements
BACKWARD_COST: Final = 3  # a step costs about as much as so many held-out batches


@dataclass(frozen=True)
class RouterRecipe:
    """How a router is trained. `encoder` gave the examples' similarities; None: no prior."""

    rank: int = 8
    steps: int = 150
    batch_size: int = 16
    learning_rate: float = 3e-3
    dropout: float = 0.5
    candidates: int | None = None  # adapters of an example, its own and others; None: all
    encoder: str | None = None
    tau: float = TAU
    seed: int = 0
    patience: int = 5  # measurements without a lower loss
    held_out_share: float = 0.1

    @property
    def prior(self) -> bool:
        """The retrieval prior is part of the scores: gate `mole`, else `mole-plain`."""
        return self.encoder is not None


class RouterSetup:
    """What `train_router` steps through; every call below needs `open`.

    Raises InvalidInputError when the examples, the adapters or the recipe cannot be trained with.
    """

    def __init__(
        self, mole: MoleModel, bank: AdapterBank, examples: Sequence[Example], recipe: RouterRecipe
    ) -> None:
        self.recipe = recipe
        self.adapters = training_adapters(examples)
        self._bank = bank
        self._rng = random.Random(recipe.seed)
        self._check(bank)
        learned, held_out = split(examples, recipe.held_out_share, self._rng)
        self._held_out = [self._draw(example, dropout=0.0) for example in held_out]
        self._batches = batches(learned, recipe.batch_size, self._rng)
        self._loss = RouterLoss(mole, bank, recipe.prior, recipe.tau)
        self._targets = mole.targets

    def _check(self, bank: AdapterBank) -> None:
        if len(self.adapters) > bank.capacity:
            raise InvalidInputError(
                f"{len(self.adapters)} adapters to train with, the bank holds {bank.capacity} "
                "(RAMOLE_BANK_SIZE): raise it, or train with fewer adapters"
            )
        count = self.recipe.candidates
        if count is not None and count < MIN_EXPERTS:
            raise InvalidInputError(f"candidates={count}: at least {MIN_EXPERTS}")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Pins the adapters in the bank. Raises what loading raises."""
        pinned: list[AdapterRef] = []
        try:
            for ref in self.adapters:
                self._bank.acquire(ref)
                pinned.append(ref)
            yield
        finally:
            for ref in pinned:
                self._bank.release(ref)

    @property
    def measure_every(self) -> int:
        """Steps between two measurements: many held-out examples are measured less often."""
        return max(MEASURE_EVERY, self._num_measured)

    @property
    def num_steps_worth(self) -> float:
        """How many steps the whole run costs, measurements included, if it is not ended early."""
        num_times = 2 + self.recipe.steps / self.measure_every
        return self.recipe.steps + num_times * self._num_measured / BACKWARD_COST

    @property
    def _num_measured(self) -> int:
        """Batches of one measurement."""
        return math.ceil(len(self._held_out) / self.recipe.batch_size)

    def first_pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """One pair for every linear that an adapter has: A_r normal, B_r 0."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        adapted = self._bank.pack(self.adapters).groups
        pairs = {}
        for target, (d_out, d_in) in self._targets.items():
            if target in adapted:
                a = torch.randn(self.recipe.rank, d_in, generator=generator) / d_in**0.5
                b = torch.zeros(d_out, self.recipe.rank)
                pairs[target] = (self._parameter(a), self._parameter(b))
        return pairs

    def on_device(self, pairs: Pairs) -> Pairs:
        """The pairs of a stored router where the model computes."""
        device = self._bank.device
        return {target: (a.to(device), b.to(device)) for target, (a, b) in pairs.items()}

    def step(self, pairs: Pairs) -> torch.Tensor:
        """The mean loss (scalar) of the next batch, with a graph to `pairs`."""
        draws = [self._draw(example, self.recipe.dropout) for example in next(self._batches)]
        total, num_tokens = self._loss(draws, pairs)
        return total / num_tokens

    @torch.no_grad()
    def measure(self, pairs: Pairs) -> float:
        """The loss per target token of the held-out examples. No pairs: without a router."""
        total, num_tokens = 0.0, 0
        for begin in range(0, len(self._held_out), self.recipe.batch_size):
            loss, count = self._loss(self._held_out[begin : begin + self.recipe.batch_size], pairs)
            total, num_tokens = total + loss.item(), num_tokens + count
        return total / num_tokens

    def _draw(self, example: Example, dropout: float) -> Draw:
        candidates = draw_candidates(example.own, self.adapters, self.recipe.candidates, self._rng)
        return Draw(example, candidates, drop_experts(candidates, dropout, self._rng))

    def _parameter(self, tensor: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(device=self._bank.device))
