"""The rows of a decoding step in tensors that stay where they are: what a recorded graph reads.

Dims: B rows and as many slots, n of them prompts', W keys looked at; P experts of a segment, N rows
of it.
Every slot from 0 to B-1 has a row: a prompt's, or padding in a slot that nobody has. Padding writes
position 0 there, which whoever gets the slot writes anew, and no prompt attends it. It has no
experts, as the rows behind the last segment have none: so that segment reaches to the last row, and
prompts may come and go within one shape. Padding and width change the work, never the answer.
Packs are held weakly: they belong to the bank.
"""

from dataclasses import dataclass
from typing import Final
from weakref import ref

import torch

from ramole_core.engine.attention import AttentionStep, Decoding
from ramole_core.engine.rows import Rows
from ramole_core.engine.sequence import Sequence
from ramole_core.engine.slots import GRAIN
from ramole_core.mole.packed import Packed
from ramole_core.mole.plan import BatchPlan, Segment

MAX_ROWS: Final = 256  # with more there is enough work to hide the launches behind
ROW_GRAIN: Final = 8  # larger numbers of rows are multiples of it, smaller ones powers of two
WIDTH_STEPS: Final = 4  # widths between two powers of two: at most a quarter is looked at in vain


@dataclass(frozen=True)
class Mixture:
    """What is the same in one segment of all steps of a shape."""

    begin: int  # first row
    pack: "ref[Packed]"
    any_routed: bool
    any_fused: bool

    @classmethod
    def of(cls, segment: Segment) -> "Mixture":
        """Of one step's segment."""
        return cls(
            segment.begin, ref(segment.packed), segment.any_routed, segment.fused is not None
        )

    @property
    def packed(self) -> Packed:
        """The pack; whoever has such rows holds it."""
        packed = self.pack()
        assert packed is not None, "no step has this pack any more"
        return packed


@dataclass(frozen=True)
class Shape:
    """What two steps must have in common for one graph to serve both."""

    layout: int  # which of the slot cache's: others lie elsewhere
    num_rows: int  # B
    width: int  # W
    mixtures: tuple[Mixture, ...]  # of the segments

    @classmethod
    def of(cls, rows: Rows) -> "Shape | None":
        """The shape of a step in which all that runs decodes; None for others and for more slots
        than MAX_ROWS.

        Beside the last tokens of prompts others may wait for room in the forward. They have slots,
        but no rows, so such steps have no shape.
        """
        cache = rows.attention.cache
        if not all(c.start >= len(c.sequence.prompt_ids) for c in rows.chunks):
            return None
        num_slots = max(c.sequence.slot for c in rows.chunks) + 1
        if num_slots > MAX_ROWS:
            return None
        return cls(
            cache.num_layouts,
            min(_rounded_rows(num_slots), cache.num_slots),
            min(_rounded_width(max(c.start for c in rows.chunks) + 1), cache.capacity),
            tuple(map(Mixture.of, rows.plan.segments)),
        )

    @property
    def alive(self) -> bool:
        """False when one of its packs is gone: no step will have this shape again."""
        return all(mixture.pack() is not None for mixture in self.mixtures)


class StaticRows:
    """The tensors of all steps of one shape. `like` is one of them."""

    def __init__(self, shape: Shape, like: Rows) -> None:
        device = like.ids.device
        self._width = shape.width
        self._cache = like.attention.cache
        self._table = torch.zeros(5, shape.num_rows, dtype=torch.int64, device=device)
        ends = [*(m.begin for m in shape.mixtures[1:]), shape.num_rows]
        self._segments = [
            _StaticSegment(mixture, end, device)
            for mixture, end in zip(shape.mixtures, ends, strict=False)  # there may be none
        ]
        self._filled: ref[Rows] | None = None

    def fill(self, rows: Rows, back: int = 0) -> None:
        """Puts the step `rows` here, or the one that was `back` tokens before it."""
        self._table.copy_(self._numbers(rows, back))
        if self._filled is None or self._filled() is not rows:  # mixtures stay while prompts do
            for static, segment in zip(self._segments, rows.plan.segments, strict=True):
                static.fill(segment)
            self._filled = ref(rows)

    def rows(self) -> Rows:
        """For one forward. Nothing that an earlier forward has computed and kept is in them: a
        graph would not compute it again."""
        ids, positions, slots, by_slot, lengths = self._table  # (B,) each
        num = len(ids)
        decoding = Decoding(slice(0, num), slots, by_slot, lengths, self._width, shortest=0)
        return Rows(
            chunks=[],
            ids=ids[None],
            positions=positions[None],
            last=None,
            attention=AttentionStep(self._cache, slots, positions, decoding),
            plan=BatchPlan(num, tuple(static.segment() for static in self._segments)),
        )

    def _numbers(self, rows: Rows, back: int) -> torch.Tensor:
        """ids, positions, slots, row of each slot, length of each slot: (5, B) on the host."""
        num = self._table.shape[1]
        places = [(c.sequence, c.start - back) for c in rows.chunks]
        ids = [_token(sequence, position) for sequence, position in places]
        positions = [position for _, position in places]
        slots = [sequence.slot for sequence, _ in places]
        free = sorted(set(range(num)) - set(slots))
        slots += free
        ids += [0] * len(free)
        positions += [0] * len(free)
        by_slot = sorted(range(num), key=slots.__getitem__)
        lengths = [positions[row] + 1 for row in by_slot]
        return torch.tensor([ids, positions, slots, by_slot, lengths])


class _StaticSegment:
    """The tensors of one segment, up to row `end`."""

    def __init__(self, mixture: Mixture, end: int, device: torch.device) -> None:
        self._mixture, self._end = mixture, end
        num_rows = end - mixture.begin  # N
        shape = (len(mixture.packed.experts), num_rows)  # P, N
        self._prior, self._static = torch.zeros(2, *shape, dtype=torch.float32, device=device)
        self._foreign = torch.ones(shape, dtype=torch.bool, device=device)
        self._routed, self._fused = torch.zeros(2, num_rows, dtype=torch.bool, device=device)

    def fill(self, segment: Segment) -> None:
        num = segment.end - segment.begin
        self._prior.zero_()[:, :num] = segment.prior
        self._static.zero_()[:, :num] = segment.static
        self._foreign.fill_(True)[:, :num] = False if segment.foreign is None else segment.foreign
        self._routed.fill_(False)[:num] = True if segment.routed is None else segment.routed
        self._fused.fill_(False)[:num] = False if segment.fused is None else segment.fused

    def segment(self) -> Segment:
        return Segment(
            begin=self._mixture.begin,
            end=self._end,
            packed=self._mixture.packed,
            prior=self._prior,
            static=self._static,
            foreign=self._foreign,
            routed=self._routed,
            fused=self._fused if self._mixture.any_fused else None,
            counted=None,
            any_routed=self._mixture.any_routed,
        )


def _token(sequence: Sequence, position: int) -> int:
    """Of the prompt with its answer."""
    behind = position - len(sequence.prompt_ids)
    return sequence.output_ids[behind] if behind >= 0 else sequence.prompt_ids[position]


def _rounded_rows(num: int) -> int:
    return 1 << (num - 1).bit_length() if num <= ROW_GRAIN else -(-num // ROW_GRAIN) * ROW_GRAIN


def _rounded_width(num: int) -> int:
    grain = max(GRAIN, (1 << num.bit_length() - 1) // WIDTH_STEPS)
    return -(-num // grain) * grain
