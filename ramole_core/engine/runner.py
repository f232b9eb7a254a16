"""Runs the prompts through the model: one forward for all that decode and all that come in.

Dims: N rows of a forward, M rows that give a token, V vocabulary.
Newcomers' prompts go through in chunks of a bounded number of tokens, beside the prompts that
decode; nothing is padded but attention's buckets. Only the rows that give a token get logits, so
memory grows with the cache alone.
Models whose position code looks at the whole batch (longrope, dynamic NTK) follow the longest
prompt: for those, and only those, an answer may depend on its neighbours.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from ramole_core.engine.attention import AttentionStep
from ramole_core.engine.backend import TOLERANCE, Backend
from ramole_core.engine.graphs import Graphs, cuda_recorder, graphs_work
from ramole_core.engine.model import LoadedBase
from ramole_core.engine.rows import Chunk, RowBuilder, Rows
from ramole_core.engine.sampling import log_probabilities, next_tokens
from ramole_core.engine.sequence import Sequence
from ramole_core.engine.slots import SlotCache
from ramole_core.mole.attach import MoleModel
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.partition import Partition

PREFILL_TOKENS: Final = {"cuda": 8192, "cpu": 2048}  # prompt tokens of one forward
LEAST_PREFILL_TOKENS: Final = 64


@dataclass(frozen=True)
class NewToken:
    """What one forward gave one prompt."""

    sequence: Sequence
    token: int  # NO_TOKEN: its logits are no numbers
    log_probability: float | None
    weights: tuple[float, ...] | None  # of its active experts, for routed prompts


class Runner:
    """Owns the model while it runs. `on_progress` is called after every forward. `uses_graphs`:
    decoding is recorded where the device can (`graphs`)."""

    def __init__(
        self,
        base: LoadedBase,
        mole: MoleModel,
        bank: AdapterBank,
        on_progress: Callable[[], None] = lambda: None,
        uses_graphs: bool = True,
    ) -> None:
        self.base = base
        self.mole = mole
        self.on_progress = on_progress
        self.prefill_tokens = PREFILL_TOKENS.get(base.device.type, PREFILL_TOKENS["cpu"])
        self._most_prefill_tokens = 0  # before memory ran out
        self.backend = Backend.install(base.model)
        recorded = uses_graphs and graphs_work(base.device)
        new_recorder = partial(cuda_recorder, base.device) if recorded else None
        self.graphs = Graphs(self._run, new_recorder, TOLERANCE.get(base.dtype, 1e-3))
        partition = Partition(len(mole.groups), bank.num_numbers, bank.packed_sets)
        self._builder = RowBuilder(bank, partition, base.device)
        self._rows: Rows | None = None  # of the last forward

    @torch.inference_mode()
    def step(self, running: Many[Sequence], cache: SlotCache) -> list[NewToken]:
        """One forward: the newest token of every prompt that decodes, and as many prompt tokens of
        the others as fit. Returns a token for every prompt whose own tokens are all in."""
        rows = self._next_rows(running, cache)
        logits = self._forward(rows)  # (M, V)
        for chunk in rows.chunks:
            chunk.sequence.num_cached += len(chunk.ids)
        return _new_tokens(rows, logits)

    def halve_chunks(self) -> None:
        """Memory ran out: prompts go through in smaller chunks for a while."""
        self._most_prefill_tokens = max(self._most_prefill_tokens, self.prefill_tokens)
        self.prefill_tokens = max(LEAST_PREFILL_TOKENS, self.prefill_tokens // 2)

    def grow_chunks(self) -> None:
        """By an eighth, up to what they were before memory ran out."""
        if self.prefill_tokens < self._most_prefill_tokens:
            grown = self.prefill_tokens * 9 // 8 + 1
            self.prefill_tokens = min(self._most_prefill_tokens, grown)

    def close(self) -> None:
        """Gives the model its own attention back."""
        self.forget()
        self.backend.remove()

    def forget(self) -> None:
        """Slots were numbered anew or a step broke: the last rows are no beginning of the next."""
        self._rows = None
        self.graphs.clear()

    def _next_rows(self, running: Many[Sequence], cache: SlotCache) -> Rows:
        if self._rows is not None and self._goes_on(self._rows, running):
            self._rows.advance()
        else:
            self._rows = None  # frees the old before the new is made
            self._rows = self._builder.build(self._chunks(running), cache)
        return self._rows

    def _goes_on(self, rows: Rows, running: Many[Sequence]) -> bool:
        """The last forward was of these prompts, and all of them decoded."""
        return (
            rows.last is None
            and len(rows.chunks) == len(running)
            and all(chunk.decodes for chunk in rows.chunks)
            and {id(c.sequence) for c in rows.chunks} == set(map(id, running))
        )

    def _chunks(self, running: Many[Sequence]) -> list[Chunk]:
        left = self.prefill_tokens
        chunks = []
        for sequence in running:
            chunk = Chunk.of(sequence, left)
            if not chunk.ids:
                continue
            if chunk.start < len(sequence.prompt_ids):
                left -= len(chunk.ids)
            chunks.append(chunk)
        return chunks

    def _forward(self, rows: Rows) -> torch.Tensor:
        """-> logits (M, V) float32."""
        logits = self.graphs.forward(rows)
        self.on_progress()
        return logits

    def _run(self, rows: Rows) -> torch.Tensor:
        """The model itself -> logits (M, V) float32."""
        arguments: dict[str, Any] = {}
        can_pick = "logits_to_keep" in self.base.forward_names
        if can_pick and rows.last is not None:
            arguments["logits_to_keep"] = rows.last
        with self.mole.running(rows.plan):
            logits = run_flat(self.base.model, rows.ids, rows.positions, rows.attention, arguments)
        picked = logits[0] if can_pick or rows.last is None else logits[0, rows.last]
        return picked.float()


def run_flat(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    attention: AttentionStep,
    arguments: dict[str, Any],
) -> torch.Tensor:
    """ids, positions (1, N) -> logits (1, N or fewer, V)."""
    output = model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        slots_step=attention,
        **arguments,
    )
    logits: torch.Tensor = output.logits
    return logits


def _new_tokens(rows: Rows, logits: torch.Tensor) -> list[NewToken]:
    sequences = [chunk.sequence for chunk in rows.giving]
    if not sequences:
        return []
    tokens = next_tokens(logits, sequences)
    wanted = [s.wants_confidence for s in sequences]
    likely = log_probabilities(logits, tokens, wanted)
    weights = _weights(rows)
    return [
        NewToken(sequence, token, value, weights.get(id(sequence)))
        for sequence, token, value in zip(sequences, tokens, likely, strict=True)
    ]


def _weights(rows: Rows) -> dict[int, tuple[float, ...]]:
    """The gate weights of the routed prompts that got a token, by the id of their sequence."""
    found = {}
    for segment, members in rows.routed:
        table = segment.weights().tolist() if members else []  # M x P
        for row, sequence, places in members:
            found[id(sequence)] = tuple([table[row][place] for place in places])
    return found
