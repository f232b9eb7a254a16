"""Builds packs from the adapters on the device, and keeps those that were used last.

Dims: S columns of a group, R rank, D_in and D_out sides of a linear.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.packed import Columns, Packed, PackedGroup, Pairs, under_router
from ramole_core.mole.resident import Pair, Resident
from ramole_core.mole.router_shelf import Router

# Bytes of all kept packs by those of a full bank of the adapters that are here, at most: a pack of
# all of them, and as much again for smaller ones.
PACK_SHARE: Final = 2.0

_Layouts = dict[tuple[tuple[int, int], ...], Columns]


class PackCache:
    """Packs by their experts and router; the one used longest ago leaves first."""

    def __init__(self) -> None:
        self._packs: dict[tuple[tuple[AdapterRef, ...], str | None], Packed] = {}

    def get(self, experts: tuple[AdapterRef, ...], router: str | None) -> Packed | None:
        """The pack, when it is kept."""
        packed = self._packs.pop((experts, router), None)
        if packed is not None:
            self._packs[experts, router] = packed
        return packed

    def keep(self, packed: Packed, max_bytes: float) -> None:
        """Keeps `packed`, and of the others those used last, as many as `max_bytes` allows."""
        self._packs[packed.experts, packed.router] = packed
        excess = sum(kept.num_bytes for kept in self._packs.values()) - max_bytes
        for key, kept in list(self._packs.items())[:-1]:
            if excess <= 0:
                return
            excess -= kept.num_bytes
            del self._packs[key]

    def experts_under(self, router: str | None) -> Iterator[tuple[AdapterRef, ...]]:
        """The experts of every pack under `router`, the one used last first."""
        return (experts for experts, version in reversed(self._packs) if version == router)

    def clear(self) -> None:
        """Gives up every pack."""
        self._packs.clear()


def build_pack(
    experts: tuple[AdapterRef, ...],
    residents: Sequence[Resident],
    groups: Sequence[Sequence[str]],
    router: Router | None,
) -> Packed:
    """`residents` are the `experts`, in the same order."""
    layouts: _Layouts = {}
    found: dict[str, PackedGroup] = {}
    # The mode of whoever asks first must not decide whether the pack can be trained with.
    with torch.inference_mode(False), torch.no_grad():
        for targets in groups:
            group = _pack_group(targets, residents, layouts, router.pairs if router else {})
            if group is not None:
                found.update(dict.fromkeys(group.targets, group))
    return Packed(experts, None if router is None else router.version, found)


def _pack_group(
    targets: Sequence[str], residents: Sequence[Resident], layouts: _Layouts, router: Pairs
) -> PackedGroup | None:
    """None when no expert has any of its linears."""
    present = tuple(t for t in targets if any(t in resident.pairs for resident in residents))
    if not present:
        return None
    widest = [max(resident.rank(t) for t in present) for resident in residents]
    ranks = tuple((place, rank) for place, rank in enumerate(widest) if rank)
    a: list[torch.Tensor] = []
    b: list[torch.Tensor] = []
    for target in present:
        members = [(residents[place].pairs.get(target), rank) for place, rank in ranks]
        known = next(pair for pair, _ in members if pair is not None)
        sides = [_padded(pair, rank, known) for pair, rank in members]
        a += [side[0] for side in sides]
        b.append(torch.cat([side[1] for side in sides], dim=1))  # (D_out, S)
    if ranks not in layouts:
        layouts[ranks] = Columns.of(ranks, len(residents), b[0].device)
    rows, gram = under_router(present, a, b, router)
    return PackedGroup(present, rows, tuple(b), layouts[ranks], gram)


def _padded(pair: Pair | None, rank: int, like: Pair) -> Pair:
    """a (R, D_in) and b (D_out, R) with zeros up to `rank`; all zeros without a pair."""
    a, b = (like[0][:0], like[1][:, :0]) if pair is None else pair
    lacking = rank - len(a)
    if not lacking:
        return a, b
    return (
        torch.cat([a, a.new_zeros(lacking, a.shape[1])]),
        torch.cat([b, b.new_zeros(len(b), lacking)], dim=1),
    )
