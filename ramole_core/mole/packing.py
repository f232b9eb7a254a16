"""Builds packs from the adapters on the device, and keeps those that were used last.

Dims: S columns of a group, R rank, D_in and D_out sides of a linear.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.packed import Columns, Packed, PackedGroup
from ramole_core.mole.resident import Resident
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
            group = _pack_group(targets, residents, layouts)
            if group is not None:
                group = group if router is None else group.with_router(router.pairs)
                found.update(dict.fromkeys(group.targets, group))
    return Packed(experts, None if router is None else router.version, found)


def _pack_group(
    targets: Sequence[str], residents: Sequence[Resident], layouts: _Layouts
) -> PackedGroup | None:
    """The group without a router; None when no expert has any of its linears."""
    present = tuple(t for t in targets if any(t in resident.pairs for resident in residents))
    if not present:
        return None
    widest = [max(resident.rank(t) for t in present) for resident in residents]
    ranks = tuple((place, rank) for place, rank in enumerate(widest) if rank)
    members = [(residents[place].pairs, rank) for place, rank in ranks]
    a = [(pairs[t][0] if t in pairs else None, rank) for t in present for pairs, rank in members]
    bs = [[(pairs[t][1] if t in pairs else None, rank) for pairs, rank in members] for t in present]
    b = tuple(_stacked(sides).T.contiguous() for sides in bs)  # L of (D_out, S)
    if ranks not in layouts:
        layouts[ranks] = Columns.of(ranks, len(residents), b[0].device)
    return PackedGroup(present, _stacked(a), b, layouts[ranks], None)


def _stacked(sides: Sequence[tuple[torch.Tensor | None, int]]) -> torch.Tensor:
    """One below the other, each padded with zeros to its number of rows; not all are None."""
    known = next(side for side, _ in sides if side is not None)
    parts = []
    for side, num_rows in sides:
        given = [] if side is None else [side]
        lacking = num_rows - sum(map(len, given))
        parts += [*given, known.new_zeros(lacking, known.shape[1])] if lacking else given
    return torch.cat(parts)
