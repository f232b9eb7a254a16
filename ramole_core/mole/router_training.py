"""Training of the router: only {A_r, B_r} learn (RAMoLE, eq. 13; PAPER.md section 2).

The loss is the language model's on the targets; base and experts are frozen. A part of the examples
is held out: the weights of its lowest loss are kept, and training ends early when that loss stops
falling. B_r begins at 0, so training begins at the mixture without a router and what is kept is
never worse on the held-out examples. The same examples, recipe and seed give the same weights on
the same machine, device and thread count.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import nn

from ramole_core.errors import InvalidInputError
from ramole_core.mole.attach import MoleModel
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.card import RouterCard
from ramole_core.mole.packed import Pairs
from ramole_core.mole.router import RouterWeights
from ramole_core.mole.router_examples import Example
from ramole_core.mole.router_setup import RouterRecipe, RouterSetup

MAX_NORM: Final = 1.0  # of the gradient
MIN_GAIN: Final = 1e-3  # share of the loss by which a router must be better to be called so


@dataclass(frozen=True)
class Step:
    """How far a training is after a step; `held_out` is the newest measurement."""

    number: int  # from 1
    of: int
    loss: float
    held_out: float


Report = Callable[[Step], None]


@dataclass(frozen=True)
class TrainedRouter:
    """`held_out`: (steps done, loss) of every measurement, the first at 0 without a router;
    `serving`: the loss of the router that was passed to compare."""

    weights: RouterWeights
    held_out: tuple[tuple[int, float], ...]
    serving: float | None
    stopped_by: Literal["steps", "patience"]

    @property
    def better(self) -> bool:
        """Its loss is lower than without a router, and than that of the one in use."""
        card = self.weights.card
        assert card.held_out_before is not None and card.held_out_after is not None
        rival = min(card.held_out_before, math.inf if self.serving is None else self.serving)
        return card.held_out_after < rival * (1 - MIN_GAIN)


@dataclass(frozen=True)
class Estimate:
    """What a training run would be: number of parameters that learn, time it takes at most."""

    num_parameters: int
    seconds: float


@dataclass(eq=False)
class _Course:
    """The measurements so far and a copy of the best weights."""

    pairs: Pairs
    patience: int
    losses: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[float, int] = (math.inf, 0)  # loss, steps done
    best_pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    num_stale: int = 0

    def note(self, step: int, loss: float) -> None:
        self.losses.append((step, loss))
        self.num_stale += 1
        if loss < self.best[0]:
            self.best, self.num_stale = (loss, step), 0
            self.best_pairs = {
                target: (a.detach().cpu().clone(), b.detach().cpu().clone())
                for target, (a, b) in self.pairs.items()
            }

    @property
    def stalled(self) -> bool:
        return self.num_stale >= self.patience


def train_router(
    mole: MoleModel,
    bank: AdapterBank,
    examples: Sequence[Example],
    recipe: RouterRecipe,
    base: str,
    created_at: str,
    serving: RouterWeights | None = None,
    report: Report = lambda step: None,
) -> TrainedRouter:
    """Trains a router for the base model with fingerprint `base`; `report` sees every step.

    Raises InvalidInputError when it cannot be trained with these examples, or diverges, and what
    loading the adapters raises.
    """
    setup = RouterSetup(mole, bank, examples, recipe)
    with setup.open():
        course = _Course(setup.first_pairs(), recipe.patience)
        course.note(0, setup.measure({}))
        rival = None if serving is None else setup.measure(setup.on_device(serving.pairs))
        _learn(setup, course, report)
    after, steps = course.best
    card = RouterCard(
        base=base,
        rank=recipe.rank,
        adapters=tuple(map(str, setup.adapters)),
        seed=recipe.seed,
        encoder=recipe.encoder,
        prior=recipe.prior,
        candidates=recipe.candidates,
        dropout=recipe.dropout,
        steps=steps,
        held_out_before=course.losses[0][1],
        held_out_after=after,
        created_at=created_at,
    )
    return TrainedRouter(
        weights=RouterWeights(course.best_pairs, card),
        held_out=tuple(course.losses),
        serving=rival,
        stopped_by="patience" if course.stalled else "steps",
    )


def estimate(
    mole: MoleModel,
    bank: AdapterBank,
    examples: Sequence[Example],
    recipe: RouterRecipe,
    clock: Callable[[], float] = time.monotonic,
) -> Estimate:
    """Times a step of the training that these arguments would run, after one to warm up."""
    setup = RouterSetup(mole, bank, examples, recipe)
    with setup.open():
        pairs = setup.first_pairs()
        optimizer = _optimizer(setup, pairs)
        _step(setup, pairs, optimizer)
        began = clock()
        _step(setup, pairs, optimizer)
        seconds = clock() - began
    num_parameters = sum(side.numel() for pair in pairs.values() for side in pair)
    return Estimate(num_parameters, seconds * setup.num_steps_worth)


def _learn(setup: RouterSetup, course: _Course, report: Report) -> None:
    """Steps until the recipe's end, or until the held-out loss has stalled."""
    steps = setup.recipe.steps
    optimizer = _optimizer(setup, course.pairs)
    for number in range(1, steps + 1):
        loss = _step(setup, course.pairs, optimizer)
        if not math.isfinite(loss):
            raise InvalidInputError(
                f"step {number}: loss or gradient is no finite number; use a smaller learning "
                "rate, or RAMOLE_DTYPE=float32"
            )
        if number % setup.measure_every == 0 or number == steps:
            course.note(number, setup.measure(course.pairs))
        report(Step(number, steps, loss, course.losses[-1][1]))
        if course.stalled:
            return


def _optimizer(setup: RouterSetup, pairs: Pairs) -> torch.optim.Optimizer:
    parameters = [side for pair in pairs.values() for side in pair]
    return torch.optim.AdamW(parameters, lr=setup.recipe.learning_rate)


def _step(setup: RouterSetup, pairs: Pairs, optimizer: torch.optim.Optimizer) -> float:
    """One step; returns its loss, NaN when the gradient is not finite (nothing was learnt then)."""
    loss = setup.step(pairs)
    optimizer.zero_grad()
    loss.backward()
    parameters = [side for pair in pairs.values() for side in pair]
    norm = nn.utils.clip_grad_norm_(parameters, MAX_NORM)
    if not math.isfinite(norm.item()):
        return math.nan
    optimizer.step()
    return loss.item()
