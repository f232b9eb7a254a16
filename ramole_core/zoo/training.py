"""Training on (prompt, answer) pairs: batches of bytes, the loss on answers only, one-cycle AdamW.

Guarantees: the same model, examples and seed give the same weights on the same machine and thread
count. Nothing here knows the tasks; the caller passes a function that draws examples.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ramole_core.zoo.model import EOS_ID, PAD_ID

DrawExample = Callable[[random.Random], tuple[str, str]]
Report = Callable[[int, float], None]

_IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """One training run: `steps` batches of `batch_size` examples; `learning_rate` is the peak."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_share: float = 0.2


def collate(examples: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Return (input ids, labels), both (B, T) int64 and padded on the right.

    Answers and their eos have labels, prompts have none.
    """
    rows = [(list(prompt.encode()), [*answer.encode(), EOS_ID]) for prompt, answer in examples]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.full((len(rows), width), PAD_ID)
    labels = torch.full((len(rows), width), _IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        inputs[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return inputs, labels


def answer_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the labelled tokens; inputs and labels (B, T).

    Padding lies to the right of every answer, so causal attention needs no mask for it.
    """
    logits = model(input_ids=inputs[:, :-1], use_cache=False).logits  # (B, T-1, V)
    targets = labels[:, 1:]
    answered = targets != _IGNORED
    return cross_entropy(logits[answered], targets[answered])


def train(
    model: nn.Module,
    draw: DrawExample,
    recipe: Recipe,
    seed: int,
    report: Report = lambda step, loss: None,
) -> None:
    """Train the parameters of `model` that require a gradient, in place; `report` sees every step's
    loss.
    """
    rng = random.Random(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=recipe.warmup_share
    )
    model.train()
    for step in range(recipe.steps):
        inputs, labels = collate([draw(rng) for _ in range(recipe.batch_size)])
        loss = answer_loss(model, inputs, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())
    model.eval()
