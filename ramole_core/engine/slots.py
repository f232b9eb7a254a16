"""The keys and values of the running prompts: one slot each, in tensors allocated ahead.

Dims: R slots ("rows" of the rectangle), C capacity of a slot in tokens, H key-value heads, D width
of a head. A token at position p of the prompt in slot s lies at [s, :, p]: nothing is padded, and
what lies behind a prompt's newest token is never attended. The rectangle R × C follows the running
prompts: it is laid out anew, live slots packed, when one needs more room than there is.
Numbers behind a prompt's end must still be finite (0 · NaN is NaN, and an answer may be finite
although some key was not): slots start at 0, and a prompt that leaves takes with it what it wrote.
"""

from collections.abc import Sequence as Many
from typing import Final

import torch

from ramole_core.engine.sequence import Sequence

GRAIN: Final = 64  # tokens; capacities are multiples of it
GROWTH: Final = 1.25  # at least, so that slowly growing prompts do not copy the cache each time


class SlotCache:
    """The tensors. Layers appear when they are first written; each may have shapes of its own."""

    def __init__(self) -> None:
        self.num_slots = 0  # R
        self.capacity = 0  # C
        self.num_layouts = 0  # so far: with each the tensors lie elsewhere
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # (R, H, C, D) each

    @property
    def num_bytes(self) -> int:
        """What the tensors take."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def write(
        self,
        layer: int,
        cells: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores N tokens: cells (N·H,) int64 as `cells` gives them, keys and values (N, H, D).

        Returns the layer's whole tensors (R, H, C, D).
        """
        if layer not in self._layers:
            self._layers[layer] = (self._empty(keys), self._empty(values))
        pair = self._layers[layer]
        for tensor, new in zip(pair, (keys, values), strict=True):
            width = new.shape[-1]
            tensor.view(-1, width).index_copy_(0, cells, new.reshape(-1, width))
        return pair

    def cells(self, slots: torch.Tensor, positions: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Where N tokens lie in a layer of H heads seen as (R·H·C, D): slots, positions (N,) int64
        -> (N·H,)."""
        heads = torch.arange(num_heads, device=slots.device)
        rows = (slots * num_heads)[:, None] + heads  # (N, H)
        return (rows * self.capacity + positions[:, None]).view(-1)

    def reshape(self, num_slots: int, capacity: int, live: Many[int]) -> None:
        """Makes room for `num_slots` of `capacity` tokens; the slots `live` become 0, 1, 2, …"""
        kept = min(capacity, self.capacity)
        self.num_slots, self.capacity = num_slots, capacity
        self.num_layouts += 1
        for layer, pair in self._layers.items():  # one layer at a time: little is there twice
            self._layers[layer] = (
                self._moved(pair[0], live, kept),
                self._moved(pair[1], live, kept),
            )

    @torch.inference_mode()
    def clear(self, slot: int, num_tokens: int) -> None:
        """Sets the first `num_tokens` of a slot to 0."""
        for keys, values in self._layers.values():
            keys[slot, :, :num_tokens] = 0
            values[slot, :, :num_tokens] = 0

    def release(self) -> None:
        """Gives all memory back."""
        self._layers.clear()
        self.num_slots = self.capacity = 0
        self.num_layouts += 1

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, width = like.shape
        return like.new_zeros(self.num_slots, heads, self.capacity, width)

    def _moved(self, old: torch.Tensor, live: Many[int], kept: int) -> torch.Tensor:
        new = old.new_zeros(self.num_slots, old.shape[1], self.capacity, old.shape[3])
        if live:
            index = torch.tensor(live, device=old.device)
            new[: len(live), :, :kept] = old[index, :, :kept]
        return new


class Slots:
    """Who sits where. `max_slots` prompts at most; R · C stays within `max_tokens`."""

    def __init__(self, max_slots: int, max_tokens: int) -> None:
        self.cache = SlotCache()
        self.max_slots = max_slots
        self.max_tokens = max_tokens
        self._taken: dict[int, Sequence] = {}

    def enter(self, newcomers: Many[Sequence]) -> bool:
        """Gives every newcomer a slot, the lowest free ones; together with those that are here
        they must be within the limits. True when slots were numbered anew."""
        num = len(self._taken) + len(newcomers)
        assert num <= self.max_slots, "the scheduler admits no more"
        needed = max((s.num_tokens for s in (*self._taken.values(), *newcomers)), default=0)
        moved = needed > self.cache.capacity or num > self.cache.num_slots
        if moved:
            self._make_room(num, needed)
        free = (slot for slot in range(self.cache.num_slots) if slot not in self._taken)
        for sequence, slot in zip(newcomers, free, strict=False):
            sequence.slot = slot
            self._taken[slot] = sequence
        return moved

    def leave(self, sequence: Sequence) -> None:
        """Frees the prompt's slot."""
        if self._taken.get(sequence.slot) is sequence:
            del self._taken[sequence.slot]
            self.cache.clear(sequence.slot, sequence.num_cached)
        sequence.slot = -1

    def release(self) -> None:
        """Everybody leaves, and all memory is given back."""
        for sequence in [*self._taken.values()]:
            sequence.slot = -1
        self._taken.clear()
        self.cache.release()

    def _make_room(self, num: int, needed: int) -> None:
        most = max(needed, self.max_tokens // num)  # tokens of a slot when `num` must fit
        wanted = (
            max(needed, round(self.cache.capacity * GROWTH))
            if needed > self.cache.capacity
            else needed
        )
        capacity = min(most, -(-wanted // GRAIN) * GRAIN)
        num_slots = max(num, min(self.max_slots, self.max_tokens // capacity))
        live = sorted(self._taken)
        self.cache.reshape(num_slots, capacity, live)
        self._taken = {new: self._taken[old] for new, old in enumerate(live)}
        for slot, sequence in self._taken.items():
            sequence.slot = slot
