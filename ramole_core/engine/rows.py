"""The rows of one forward: which tokens of which prompts, in which order. Lists, then tensors once.

Dims: N rows, M rows that give a token.
Prompts stand segment by segment (`mole.partition`), so that every mixture layer works on
consecutive rows; attention finds each kind of prompt by index.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch

from ramole_core.engine.attention import AttentionStep, Continued, Decoding, Fresh
from ramole_core.engine.sequence import Sequence
from ramole_core.engine.slots import SlotCache
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.packed import Packed
from ramole_core.mole.partition import Item, Partition
from ramole_core.mole.plan import BatchPlan, Segment

BUCKET: Final = 1.25  # prompts whose lengths differ by less are padded to one length


@dataclass(frozen=True, eq=False)
class Chunk:
    """The next tokens of one prompt, from position `start` on."""

    sequence: Sequence
    start: int
    ids: list[int]

    @classmethod
    def of(cls, sequence: Sequence, most: int) -> "Chunk":
        """What is not in the cache yet, `most` tokens at most."""
        start = sequence.num_cached
        if start >= len(sequence.prompt_ids):
            return cls(sequence, start, [sequence.output_ids[-1]])
        return cls(sequence, start, sequence.prompt_ids[start : start + most])

    @property
    def gives_token(self) -> bool:
        """The answer goes on behind these tokens."""
        return self.start + len(self.ids) >= len(self.sequence.prompt_ids)

    @property
    def decodes(self) -> bool:
        """One token with others before it."""
        return self.start > 0 and len(self.ids) == 1


@dataclass(eq=False)
class Rows:
    """The tensors of one forward."""

    chunks: list[Chunk]  # in the order of their rows
    ids: torch.Tensor  # (1, N) int64
    positions: torch.Tensor  # (1, N) int64
    last: torch.Tensor | None  # (M,) int64, rows that give a token; None: all
    attention: AttentionStep
    plan: BatchPlan

    @property
    def giving(self) -> list[Chunk]:
        """The M chunks that give a token."""
        return [chunk for chunk in self.chunks if chunk.gives_token]

    @cached_property
    def routed(self) -> list[tuple[Segment, list[tuple[int, Sequence, list[int]]]]]:
        """Each segment's routed prompts that get a token: which of the segment's such rows, whose,
        and the places of its adapters among the segment's experts."""
        giving = iter(self.giving)
        found = []
        for segment in self.plan.segments:
            members = [next(giving).sequence for _ in range(segment.num_giving)]
            place = {ref: p for p, ref in enumerate(segment.packed.experts)}
            places = [
                (row, sequence, [place[ref] for ref in sequence.adapters])
                for row, sequence in enumerate(members)
                if sequence.mix.routed
            ]
            found.append((segment, places))
        return found

    def advance(self) -> None:
        """The same prompts, all decoding, with their newest tokens."""
        self.chunks = [Chunk.of(chunk.sequence, 1) for chunk in self.chunks]
        ids = [chunk.ids for chunk in self.chunks]
        self.ids = torch.tensor(ids, device=self.ids.device).view(1, -1)
        self.positions = self.positions + 1
        self.attention.advance(self.positions[0])
        for segment in self.plan.segments:
            segment.restart()


class RowBuilder:
    """Puts chunks into rows. `partition` decides on the segments, `bank` packs their experts."""

    def __init__(self, bank: AdapterBank, partition: Partition, device: torch.device) -> None:
        self._bank = bank
        self._partition = partition
        self._device = device

    def build(self, chunks: Many[Chunk], cache: SlotCache) -> Rows:
        """The rows of `chunks`; every prompt once, its adapters in the bank. May run out of
        memory while adapters are packed."""
        items = [
            Item(len(c.ids), frozenset(c.sequence.adapters), c.sequence.router) for c in chunks
        ]
        parts = self._partition.of(items)
        placed = {place for part in parts for place in part.items}
        ordered: list[Chunk] = []
        segments, begin = [], 0
        for part in parts:
            members = sorted((chunks[i] for i in part.items), key=_by_kind)
            packed = self._bank.pack(sorted(part.experts), part.router)
            segments.append(self._segment(begin, members, packed))
            begin += sum(len(c.ids) for c in members)
            ordered += members
        ordered += sorted((c for i, c in enumerate(chunks) if i not in placed), key=_by_kind)
        return self._tensors(ordered, tuple(segments), cache)

    def _segment(self, begin: int, members: list[Chunk], packed: Packed) -> Segment:
        mixes = [c.sequence.mix for c in members]
        lengths = [len(c.ids) for c in members]
        counted = _last_rows(members)
        everywhere = len(counted) == sum(lengths)
        return Segment.of(
            begin, mixes, lengths, None if everywhere else counted, packed, self._device
        )

    def _tensors(
        self, chunks: list[Chunk], segments: tuple[Segment, ...], cache: SlotCache
    ) -> Rows:
        ids = [token for c in chunks for token in c.ids]
        positions = [p for c in chunks for p in range(c.start, c.start + len(c.ids))]
        slots = [c.sequence.slot for c in chunks for _ in c.ids]
        table = torch.tensor([ids, positions, slots], device=self._device)  # (3, N)
        last = _last_rows(chunks)
        everywhere = len(last) == len(ids)
        return Rows(
            chunks=chunks,
            ids=table[:1],
            positions=table[1:2],
            last=None if everywhere else _index(last, self._device),
            attention=self._attention(chunks, table, cache),
            plan=BatchPlan(len(ids), segments),
        )

    def _attention(
        self, chunks: list[Chunk], table: torch.Tensor, cache: SlotCache
    ) -> AttentionStep:
        decoding, fresh, continued = [], [], []
        begin = 0
        for chunk in chunks:
            if chunk.decodes:
                decoding.append((begin, chunk))
            elif chunk.start == 0:
                fresh.append((begin, chunk))
            else:
                end = begin + len(chunk.ids)
                continued.append(Continued(begin, end, chunk.sequence.slot, chunk.start))
            begin += len(chunk.ids)
        return AttentionStep(
            cache=cache,
            slots=table[2],
            positions=table[1],
            decoding=self._decoding(decoding) if decoding else None,
            fresh=tuple(self._bucket(bucket) for bucket in _buckets(fresh)),
            continued=tuple(continued),
        )

    def _decoding(self, members: list[tuple[int, Chunk]]) -> Decoding:
        slots = [chunk.sequence.slot for _, chunk in members]
        lengths, by_slot = [1] * (max(slots) + 1), [0] * (max(slots) + 1)
        for place, (slot, (_, chunk)) in enumerate(zip(slots, members, strict=True)):
            lengths[slot], by_slot[slot] = chunk.start + 1, place
        return Decoding(
            rows=_slice_or_index([begin for begin, _ in members], self._device),
            slots=_index(slots, self._device),
            by_slot=_index(by_slot, self._device),
            lengths=_index(lengths, self._device),
            width=max(lengths),
            shortest=min(chunk.start + 1 for _, chunk in members),
        )

    def _bucket(self, members: list[tuple[int, Chunk]]) -> Fresh:
        tokens = max(len(chunk.ids) for _, chunk in members)
        rows: list[int] = []
        real: list[int] = []
        for place, (begin, chunk) in enumerate(members):
            num = len(chunk.ids)
            rows += [*range(begin, begin + num), *[begin] * (tokens - num)]
            real += range(place * tokens, place * tokens + num)
        if len(real) == len(rows):
            return Fresh(_slice_or_index(rows, self._device), (len(members), tokens), None)
        shape = (len(members), tokens)
        return Fresh(_index(rows, self._device), shape, _index(real, self._device))


def _by_kind(chunk: Chunk) -> tuple[bool, bool, int]:
    """Decoding prompts first, then fresh ones by length: what belongs together is consecutive."""
    return not chunk.decodes, chunk.start > 0, len(chunk.ids)


def _last_rows(chunks: Many[Chunk]) -> list[int]:
    """The last row of every chunk that gives a token."""
    rows, end = [], 0
    for chunk in chunks:
        end += len(chunk.ids)
        if chunk.gives_token:
            rows.append(end - 1)
    return rows


def _buckets(fresh: list[tuple[int, Chunk]]) -> list[list[tuple[int, Chunk]]]:
    """Prompts of similar length together, so that little is padded."""
    buckets: list[list[tuple[int, Chunk]]] = []
    for member in sorted(fresh, key=lambda m: (len(m[1].ids), m[0])):
        if buckets and len(member[1].ids) <= BUCKET * len(buckets[-1][0][1].ids):
            buckets[-1].append(member)
        else:
            buckets.append([member])
    return buckets


def _slice_or_index(rows: list[int], device: torch.device) -> slice | torch.Tensor:
    """Consecutive rows as a slice: those are views, not copies."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return _index(rows, device)


def _index(places: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.int64, device=device)  # the type of none, too
