"""MoE with a trained task gate, as the papers compare with: which task is this prompt?

Dims: N prompts, D width of the base model, A adapters. A linear softmax over the base model's mean
last hidden state of the prompt, trained on the adapters' sample prompts. The experts are its k
likeliest adapters, weighted by their probabilities renormalised. A masked adapter's column is
dropped first. Nothing is random: the loss is convex and starts from zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn.functional import cross_entropy

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.model import LoadedBase
from ramole_core.engine.request import Expert, GenerationRequest

STEPS: Final = 300
LEARNING_RATE: Final = 0.05
WEIGHT_DECAY: Final = 1e-2
BATCH: Final = 64


@dataclass(frozen=True, eq=False)
class TaskGate:
    """Log-probabilities log p(adapter | prompt)."""

    adapters: tuple[AdapterRef, ...]
    weight: torch.Tensor  # (A, D)
    bias: torch.Tensor  # (A,)
    mean: torch.Tensor  # (D,) of the training features, as `std`
    std: torch.Tensor  # (D,)

    @classmethod
    def train(
        cls, adapters: Sequence[AdapterRef], features: torch.Tensor, labels: torch.Tensor
    ) -> "TaskGate":
        """features (N, D), labels (N,) places in `adapters`."""
        mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
        x = (features - mean) / std
        weight = torch.zeros(len(adapters), x.shape[1], requires_grad=True)
        bias = torch.zeros(len(adapters), requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(x @ weight.T + bias, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return cls(tuple(adapters), weight.detach(), bias.detach(), mean, std)

    def log_probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, A)"""
        x = (features - self.mean) / self.std
        return torch.log_softmax(x @ self.weight.T + self.bias, dim=-1)

    def experts(
        self, log_probabilities: torch.Tensor, allowed: frozenset[AdapterRef], k: int
    ) -> tuple[Expert, ...]:
        """The k likeliest of `allowed` for one prompt's (A,), likeliest first, with weights."""
        pairs = zip(log_probabilities.tolist(), self.adapters, strict=True)
        best = sorted(((p, ref) for p, ref in pairs if ref in allowed), reverse=True)[:k]
        weights = torch.softmax(torch.tensor([p for p, _ in best]), dim=0).tolist()
        return tuple(Expert(ref, weight=w) for (_, ref), w in zip(best, weights, strict=True))


@torch.inference_mode()
def hidden_means(base: LoadedBase, prompts: Sequence[str]) -> torch.Tensor:
    """The base model's last hidden state, mean over each prompt's tokens: (N, D)."""
    return torch.cat(
        [_means(base, prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
    ).clone()


def _means(base: LoadedBase, prompts: Sequence[str]) -> torch.Tensor:
    rows = [base.prompt_ids(GenerationRequest(p), base.context_tokens) for p in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])  # (B, T), padded right
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])  # (B, T)
    output = base.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    hidden: torch.Tensor = output.hidden_states[-1]  # (B, T, D)
    weights = mask[..., None].float()  # (B, T, 1)
    return (hidden * weights).sum(1) / weights.sum(1)  # (B, D)
