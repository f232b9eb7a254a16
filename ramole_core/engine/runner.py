"""Runs a batch through the model: the prompts in chunks, then one token for every prompt a step.

Dims: B prompts, T tokens of one forward, W width so far (prompt, padding, answer), V vocabulary.
Prompts are padded on the left and carry explicit positions and masks, so an answer does not depend
on its neighbours. Only the last position's logits are computed, and long prompts go through in
chunks of bounded size, so memory grows with the cache alone. Lists first, tensors once.
Models whose position code looks at the whole batch (longrope, dynamic NTK) follow the longest
prompt: for those, and only those, an answer may depend on its neighbours.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Final

import torch

from ramole_core.engine.cache import keep_rows, new_cache
from ramole_core.engine.model import LoadedBase
from ramole_core.engine.sampling import Sampler, log_probabilities
from ramole_core.engine.sequence import Sequence
from ramole_core.mole.attach import MoleModel
from ramole_core.mole.plan import BatchPlan

PREFILL_TOKENS: Final = {"cuda": 4096, "cpu": 1024}  # of one forward, padding included
MIN_CHUNK: Final = 16


@dataclass(eq=False)
class RunningBatch:
    """The tensors of a batch between two steps."""

    sequences: list[Sequence]  # B
    plan: BatchPlan
    sampler: Sampler
    cache: Any
    mask: torch.Tensor | None  # (B, W_max) int64, 0 on padding; None: no padding, no mask needed
    width: int  # W
    positions: torch.Tensor  # (B, 1) int64, position of each prompt's newest token
    tokens: list[int]  # B, the newest token of each prompt
    log_probabilities: list[float | None]  # B, of those tokens; None: that prompt wants none


class Runner:
    """Owns the model while a batch runs. `on_progress` is called after every forward."""

    def __init__(
        self, base: LoadedBase, mole: MoleModel, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        self.base = base
        self.mole = mole
        self.on_progress = on_progress
        self.prefill_tokens = PREFILL_TOKENS.get(base.device.type, PREFILL_TOKENS["cpu"])

    @torch.inference_mode()
    def start(self, sequences: Many[Sequence], plan: BatchPlan) -> RunningBatch:
        """Runs the prompts; `tokens` of the answer are the first generated ones."""
        ids, padding = self._padded(sequences)  # (B, W), (B,)
        num, width = ids.shape
        batch = RunningBatch(
            sequences=list(sequences),
            plan=plan,
            sampler=Sampler([s.request for s in sequences]),
            cache=new_cache(self.base.model),
            mask=self._mask(sequences, padding, width),
            width=0,
            positions=(width - 1 - padding)[:, None],  # (B, 1)
            tokens=[],
            log_probabilities=[],
        )
        positions = torch.arange(width, device=ids.device) - padding[:, None]  # (B, W)
        positions.clamp_(min=0)
        chunk = max(MIN_CHUNK, self.prefill_tokens // num)
        for begin in range(0, width, chunk):
            end = min(begin + chunk, width)
            part = slice(begin, end)
            logits = self._forward(batch, ids[:, part], positions[:, part], end == width)
        self._choose(batch, logits)
        return batch

    @torch.inference_mode()
    def step(self, batch: RunningBatch) -> list[int]:
        """Feeds every prompt's newest token; its next one becomes the newest."""
        ids = torch.tensor(batch.tokens, device=self.base.device)[:, None]  # (B, 1)
        batch.positions = batch.positions + 1  # (B, 1)
        logits = self._forward(batch, ids, batch.positions, True)
        self._choose(batch, logits)
        return batch.tokens

    @torch.inference_mode()
    def keep(self, batch: RunningBatch, rows: Many[int]) -> None:
        """Drops every prompt of `batch` but `rows`."""
        index = torch.tensor(list(rows), device=self.base.device)  # (B',)
        keep_rows(batch.cache, index)
        batch.sampler.keep(rows)
        batch.plan = batch.plan.select(rows)
        batch.sequences = [batch.sequences[row] for row in rows]
        batch.tokens = [batch.tokens[row] for row in rows]
        batch.log_probabilities = [batch.log_probabilities[row] for row in rows]
        batch.positions = batch.positions[index]  # (B', 1)
        batch.mask = None if batch.mask is None else batch.mask[index]  # (B', W_max)

    def _forward(
        self, batch: RunningBatch, ids: torch.Tensor, positions: torch.Tensor, counting: bool
    ) -> torch.Tensor:
        """ids, positions (B, T) -> logits (B, V) float32 of the last position.

        `counting`: that position gives a token, its gate weights go into the report.
        """
        batch.width += ids.shape[1]
        mask = None if batch.mask is None else batch.mask[:, : batch.width]  # (B, W)
        arguments: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        known = {k: v for k, v in arguments.items() if k in self.base.forward_names}
        batch.plan.counting, batch.plan.num_tokens = counting, ids.shape[1]
        with self.mole.running(batch.plan):
            logits = self.base.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=batch.cache,
                use_cache=True,
                **known,
            ).logits  # (B, 1, V), or (B, T, V) where the model cannot keep less
        self.on_progress()
        return logits[:, -1].float()

    def _choose(self, batch: RunningBatch, logits: torch.Tensor) -> None:
        """logits (B, V) -> every prompt's next token, with its log-probability where wanted."""
        wanted = [s.wants_confidence for s in batch.sequences]
        batch.tokens = batch.sampler.next_tokens(logits)
        batch.log_probabilities = log_probabilities(logits, batch.tokens, wanted)

    def _padded(self, sequences: Many[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts padded on the left (B, W) and their padding (B,). Padding is masked, so any
        valid id does: a tokenizer's pad id may lie outside the model's vocabulary."""
        width = max(len(s.prompt_ids) for s in sequences)
        padding = [width - len(s.prompt_ids) for s in sequences]
        rows = [[0] * n + s.prompt_ids for n, s in zip(padding, sequences, strict=True)]
        device = self.base.device
        return torch.tensor(rows, device=device), torch.tensor(padding, device=device)

    def _mask(
        self, sequences: Many[Sequence], padding: torch.Tensor, width: int
    ) -> torch.Tensor | None:
        even = all(len(s.prompt_ids) == width for s in sequences)
        if even and "position_ids" in self.base.forward_names:
            return None
        longest = width + max(s.max_new_tokens for s in sequences)  # W_max
        columns = torch.arange(longest, device=padding.device)  # (W_max,)
        return (columns >= padding[:, None]).long()  # (B, W_max)
