"""The language-model loss of a batch under a router, differentiable in the router's pairs.

Dims: B examples, T tokens, N target tokens of the batch, V vocabulary, S packed columns, R_r router
rank, D_in and D_out sides of a linear. The model runs as in inference: the same layers, plan and
packed adapters; only the Gram matrices B_rᵀ [B_1 … B_P] and A_r come from `pairs`, rounded to
the model's dtype as the bank rounds them. Examples are padded on the right and the padding is
masked: no target token sees it.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ramole_core.mole.attach import MoleModel
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.packed import Packed, PackedLinear
from ramole_core.mole.plan import BatchPlan
from ramole_core.mole.router_examples import Draw, Example

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # linear -> (R_r, D_in), (D_out, R_r)


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
    """See the module's docstring. `bank` holds the adapters and has no router of its own."""

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
        plan = BatchPlan.build(mixes, routed(packed, pairs), self._bank.device)
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
        plan.num_tokens = width
        with self._mole.running(plan):
            output = self._mole.model(
                input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **more
            )
        logits: torch.Tensor = output.logits
        return logits[:, batch.first - width :]


def routed(packed: Packed, pairs: Pairs) -> Packed:
    """`packed` under the router `pairs`; linears without a pair have no score."""
    return replace(
        packed,
        linears={
            target: _with_router(linear, pairs.get(target))
            for target, linear in packed.linears.items()
        },
    )


def _with_router(
    linear: PackedLinear, pair: tuple[torch.Tensor, torch.Tensor] | None
) -> PackedLinear:
    if pair is None:
        return replace(linear, gram=None, router_a=None)
    a, b = (side.to(linear.a.dtype) for side in pair)  # (R_r, D_in), (D_out, R_r)
    return replace(linear, gram=b.float().T @ linear.b.float(), router_a=a)  # gram (R_r, S)
