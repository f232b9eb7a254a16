"""The language-model loss of a batch under a router, differentiable in the router's pairs.

Dims: B examples, T tokens, N target tokens of the batch, V vocabulary. The model runs as in
inference: the same layers, plan and packed adapters; only A_r and B_r come from `pairs`, rounded to
the model's dtype as the bank rounds them. Examples are padded on the right and the padding is
masked: no target token sees it.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ramole_core.mole.attach import MoleModel
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.packed import Pairs
from ramole_core.mole.plan import BatchPlan
from ramole_core.mole.router_examples import Draw, Example


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of some examples. Place t predicts the token behind it."""

    ids: torch.Tensor  # (B, T) int64
    mask: torch.Tensor  # (B, T) int64, 0 on padding
    labels: torch.Tensor  # (B, T) int64, the token behind place t
    answered: torch.Tensor  # (B, T) bool, that token belongs to the target
    first: int  # first place of the batch that predicts a target token

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device) -> "TokenBatch":
        """Lists first, tensors once. Padding is masked, so any valid id does."""
        rows = [[*e.prompt_ids, *e.target_ids] for e in examples]
        lengths = [len(row) - 1 for row in rows]
        width = max(lengths)  # T
        padded = [row + [0] * (width + 1 - len(row)) for row in rows]
        tokens = torch.tensor(padded, device=device)  # (B, T + 1)
        places = torch.arange(width, device=device)  # (T,)
        ends = torch.tensor(lengths, device=device)[:, None]  # (B, 1)
        begins = torch.tensor([len(e.prompt_ids) - 1 for e in examples], device=device)[:, None]
        return cls(
            ids=tokens[:, :-1],
            mask=(places < ends).long(),
            labels=tokens[:, 1:],
            answered=(places >= begins) & (places < ends),
            first=min(len(e.prompt_ids) for e in examples) - 1,
        )


class RouterLoss:
    """See the module's docstring. `bank` holds the adapters."""

    def __init__(self, mole: MoleModel, bank: AdapterBank, prior: bool, tau: float) -> None:
        self._mole = mole
        self._bank = bank
        self._prior = prior
        self._tau = tau
        self._can_cut = "logits_to_keep" in inspect.signature(mole.model.forward).parameters

    def __call__(self, draws: Sequence[Draw], pairs: Pairs) -> tuple[torch.Tensor, int]:
        """(sum of the target tokens' cross-entropy, a scalar in float32; N)."""
        batch = TokenBatch.of([draw.example for draw in draws], self._bank.device)
        packed = self._bank.pack([ref for draw in draws for ref in draw.candidates])
        mixes = [draw.mix(self._prior, self._tau) for draw in draws]
        width = batch.ids.shape[1]  # T
        plan = BatchPlan.of_batch(mixes, width, packed.with_router(pairs), self._bank.device)
        answered = batch.answered[:, batch.first :]  # (B, T - first)
        logits = self._logits(batch, plan)[answered].float()  # (N, V)
        targets = batch.labels[:, batch.first :][answered]  # (N,)
        return cross_entropy(logits, targets, reduction="sum"), len(targets)

    def _logits(self, batch: TokenBatch, plan: BatchPlan) -> torch.Tensor:
        """(B, T - first, V). The places before are the prompts': nobody needs their logits."""
        width = batch.ids.shape[1]
        more: dict[str, Any] = {}
        if self._can_cut:
            more["logits_to_keep"] = torch.arange(batch.first, width, device=batch.ids.device)
        with self._mole.running(plan):
            output = self._mole.model(
                input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **more
            )
        logits: torch.Tensor = output.logits
        return logits[:, batch.first - width :]
