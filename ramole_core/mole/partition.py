"""How the prompts of one forward are put into segments: a small cost model.

The layer runs two small products for every segment and linear: over the segment's rows and the
ranks of all its experts. One segment for everything (all unique experts in one pair of products)
costs the fewest calls and the most arithmetic, a segment for every set of experts the opposite.
Between them lies everything that matters, so one rule chooses: take the cheapest.

    cost(segment) = CALLS · groups + rows · numbers + COPY · numbers (unless packed already)

in multiply-adds, where `numbers` counts the weights of the segment's experts. Gathering each
prompt's own stack instead (the batched product of PAPER.md's table) was 1.3 to 6 times the base
linear on CPUs and is not among the choices.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ramole_core.adapters.ref import AdapterRef

CALLS: Final = 120_000_000  # of one group of one segment: its many small operations
COPY: Final = 4  # packing an adapter's weights, spread over the forwards that use the copy

Experts = frozenset[AdapterRef]


@dataclass(frozen=True)
class Item:
    """One prompt's rows in a forward."""

    num_rows: int
    experts: Experts
    router: str | None = None  # the version whose scores it needs


@dataclass(eq=False)
class Part:
    """One segment in the making: places of its items, and the experts that it packs."""

    items: list[int]
    num_rows: int
    experts: Experts
    router: str | None


@dataclass(eq=False)
class _Growing:
    """Parts that will be one; experts by number."""

    parts: list[Part] = field(default_factory=list)
    num_rows: int = 0
    experts: set[int] = field(default_factory=set)
    numbers: int = 0

    def add(self, part: Part, own: list[int], sizes: list[int]) -> None:
        """`own` are the part's experts."""
        self.parts.append(part)
        self.num_rows += part.num_rows
        self.experts.update(own)
        self.numbers = sum([sizes[i] for i in self.experts])


class Partition:
    """The cost model. `num_numbers` tells an adapter's size, `packed` what lies packed already."""

    def __init__(
        self,
        num_groups: int,
        num_numbers: Callable[[AdapterRef], int],
        packed: Callable[[str | None], Iterable[Experts]] = lambda router: (),
    ) -> None:
        self._calls = CALLS * num_groups
        self._num_numbers = num_numbers
        self._packed = packed

    def of(self, items: Sequence[Item]) -> list[Part]:
        """Every item that has experts, once; items of one part need no two routers."""
        parts = []
        for places in _by_router(items):
            best = self._best(items, places)
            packed = [(e, self._numbers(e)) for e in self._packed(best[0].router)]
            for part in best:
                part.experts = self._packed_as(part, packed)
            parts += best
        return parts

    def _best(self, items: Sequence[Item], places: Sequence[int]) -> list[Part]:
        """The cheaper of: all in one, and merged step by step from equal sets of experts."""
        distinct = _by_experts(items, places)
        whole = _union(distinct)
        merged = self._merged(distinct)
        return merged if sum(map(self.cost, merged)) < self.cost(whole) else [whole]

    def _merged(self, parts: list[Part]) -> list[Part]:
        """Puts every part, the largest first, where it adds least: into one of those before it,
        or beside them."""
        refs = _union(parts).experts
        numbered = {ref: i for i, ref in enumerate(refs)}  # names are slow to look up
        sizes = [self._num_numbers(ref) for ref in refs]
        kept: list[_Growing] = []
        for part in sorted(parts, key=lambda p: (-p.num_rows, p.items)):
            rows, own = part.num_rows, [numbered[ref] for ref in part.experts]
            added = []
            for other in kept:
                new = sum([sizes[i] for i in own if i not in other.experts])
                added.append(rows * other.numbers + (rows + other.num_rows + COPY) * new)
            best = min(range(len(added)), key=added.__getitem__, default=-1)
            if best < 0 or added[best] > self.cost(part):
                best = len(kept)
                kept.append(_Growing())
            kept[best].add(part, own, sizes)
        return [_union(other.parts) for other in kept]

    def cost(self, part: Part) -> float:
        """See the module's docstring."""
        return self._calls + (part.num_rows + COPY) * self._numbers(part.experts)

    def _packed_as(self, part: Part, packed: Iterable[tuple[Experts, int]]) -> Experts:
        """The part's experts, or the smallest packed superset that is cheaper than a new copy."""
        best, least = part.experts, (part.num_rows + COPY) * self._numbers(part.experts)
        for experts, numbers in packed:
            if part.num_rows * numbers <= least and part.experts <= experts:
                best, least = experts, part.num_rows * numbers
        return best

    def _numbers(self, experts: Experts) -> int:
        return sum(map(self._num_numbers, experts))


def _by_router(items: Sequence[Item]) -> list[list[int]]:
    """Places of the items with experts, by router; those that need none join the first."""
    groups: dict[str | None, list[int]] = {}
    for place, item in enumerate(items):
        if item.experts:
            groups.setdefault(item.router, []).append(place)
    free = groups.pop(None, [])
    if not groups:
        return [free] if free else []
    first = next(iter(groups))
    groups[first] = sorted(groups[first] + free)
    return list(groups.values())


def _by_experts(items: Sequence[Item], places: Sequence[int]) -> list[Part]:
    parts: dict[Experts, Part] = {}
    router = next((items[i].router for i in places if items[i].router), None)
    for place in places:
        item = items[place]
        part = parts.setdefault(item.experts, Part([], 0, item.experts, router))
        part.items.append(place)
        part.num_rows += item.num_rows
    return list(parts.values())


def _union(parts: Sequence[Part]) -> Part:
    return Part(
        items=sorted(place for part in parts for place in part.items),
        num_rows=sum(part.num_rows for part in parts),
        experts=frozenset().union(*(part.experts for part in parts)),
        router=parts[0].router,
    )
