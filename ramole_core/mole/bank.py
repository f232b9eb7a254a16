"""The adapters that lie on the device: a bounded pool with pins, oldest use out first.

Dims: R rank of an adapter in one linear, R_r router rank, D_in and D_out sides of the linear.
One pool holds adapters of any ranks and targets. One router is active at a time: for it the bank
keeps the Gram matrices G_i = B_rᵀ B_i (PAPER.md section 2); another router recomputes them.
Guarantees: never more than `capacity` adapters; an adapter in use (pinned) is never evicted; an
adapter that cannot be read or does not fit changes nothing (one that fails on its way to the
device, for want of memory, may have evicted another). Not thread-safe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.errors import PromptError, RamoleError
from ramole_core.mole.packed import Columns, Packed, PackedLinear
from ramole_core.mole.router import RouterWeights

MAX_WEIGHT: Final = 1e4


class AdapterSource(Protocol):
    """Where adapters come from (the on-disk cache over the store)."""

    def load(self, ref: AdapterRef) -> LoraWeights:
        """The weights of `ref`. May raise anything; RamoleError says what went wrong."""
        ...


class BankFullError(RamoleError):
    """Raised when every adapter in the bank is in use. The scheduler never lets it happen."""

    code = "bank_full"


@dataclass(eq=False)
class _Resident:
    """One adapter on the device."""

    pairs: dict[str, LoraPair]  # a (R, D_in), b (D_out, R) in the model's dtype
    grams: dict[str, torch.Tensor] = field(default_factory=dict)  # (R_r, R) float32
    num_pins: int = 0


class AdapterBank:
    """See the module's docstring. `targets` are the base model's linears -> (D_out, D_in)."""

    def __init__(
        self,
        targets: Mapping[str, tuple[int, int]],
        capacity: int,
        source: AdapterSource,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.targets = targets
        self.capacity = capacity
        self.source = source
        self.device = device
        self.dtype = dtype
        self.num_loads = 0
        self._residents: dict[AdapterRef, _Resident] = {}  # least recently used first
        self._router_version: str | None = None
        self._router: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._last: tuple[tuple[AdapterRef, ...], str | None, Packed] | None = None

    def __contains__(self, ref: AdapterRef) -> bool:
        return ref in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def router_version(self) -> str | None:
        """The version of the router in use."""
        return self._router_version

    def check_admissible(self, experts: Sequence[AdapterRef]) -> None:
        """Raises PromptError when one prompt needs more adapters than the bank holds."""
        if len(experts) > self.capacity:
            raise PromptError(
                "too_many_experts",
                f"{len(experts)} experts for one prompt, the bank holds {self.capacity} "
                "(RAMOLE_BANK_SIZE); use a smaller k",
            )

    def acquire(self, ref: AdapterRef) -> None:
        """Pins `ref`, loading it when it is not here. Raises what the source raises, PromptError
        when the adapter does not fit the base model, BankFullError when all others are pinned."""
        if ref not in self._residents:
            weights = self.source.load(ref)
            self._check_fits(ref, weights)
            self._make_room()
            self._residents[ref] = self._put(weights)
            self.num_loads += 1
        resident = self._residents.pop(ref)
        resident.num_pins += 1
        self._residents[ref] = resident

    def release(self, ref: AdapterRef) -> None:
        """Takes one pin off; the adapter stays until its room is needed."""
        self._residents[ref].num_pins -= 1

    def free_unused(self) -> None:
        """Gives up every adapter that is not pinned, and the packed copy: memory ran out."""
        self._last = None
        self._residents = {ref: r for ref, r in self._residents.items() if r.num_pins}

    def use_router(self, version: str | None, weights: RouterWeights | None) -> None:
        """Makes `weights` the router in use and computes every Gram matrix for it.

        Raises InvalidInputError, and changes nothing, when it does not fit the base model.
        """
        pairs = {}
        if weights is not None:
            weights.check_fits(self.targets)
            pairs = {name: (self._on(a), self._on(b)) for name, (a, b) in weights.pairs.items()}
        grams = {ref: _grams(pairs, r.pairs) for ref, r in self._residents.items()}
        self._router_version, self._router, self._last = version, pairs, None
        for ref, resident in self._residents.items():
            resident.grams = grams[ref]

    def pack(self, refs: Sequence[AdapterRef]) -> Packed:
        """The acquired adapters `refs` side by side. The last answer is kept: batches that share
        their adapters share one copy."""
        experts = tuple(sorted(set(refs)))
        if self._last is None or self._last[:2] != (experts, self._router_version):
            self._last = None  # frees the old copy before the new one is made
            layouts: dict[tuple[tuple[int, int], ...], Columns] = {}
            linears = {
                target: linear
                for target in self.targets
                if (linear := self._pack_linear(target, experts, layouts)) is not None
            }
            self._last = (experts, self._router_version, Packed(experts, linears))
        return self._last[2]

    def _pack_linear(
        self,
        target: str,
        experts: tuple[AdapterRef, ...],
        layouts: dict[tuple[tuple[int, int], ...], Columns],
    ) -> PackedLinear | None:
        residents = [(p, self._residents[ref]) for p, ref in enumerate(experts)]
        members = [(p, resident) for p, resident in residents if target in resident.pairs]
        if not members:
            return None
        pairs = [resident.pairs[target] for _, resident in members]
        ranks = tuple((p, pair.rank) for (p, _), pair in zip(members, pairs, strict=True))
        if ranks not in layouts:
            layouts[ranks] = Columns.of(ranks, len(experts), self.device)
        router = self._router.get(target)
        return PackedLinear(
            a=torch.cat([pair.a for pair in pairs]),  # (S, D_in)
            b=torch.cat([pair.b for pair in pairs], dim=1),  # (D_out, S)
            columns=layouts[ranks],
            gram=torch.cat([r.grams[target] for _, r in members], dim=1) if router else None,
            router_a=router[0] if router else None,
        )

    def _make_room(self) -> None:
        if len(self._residents) < self.capacity:
            return
        for ref, resident in self._residents.items():
            if resident.num_pins == 0:
                del self._residents[ref]
                return
        raise BankFullError(f"all {self.capacity} adapters of the bank are in use")

    def _check_fits(self, ref: AdapterRef, weights: LoraWeights) -> None:
        for name, pair in weights.pairs.items():
            found = (pair.b.shape[0], pair.a.shape[1])
            if self.targets.get(name) != found or pair.b.shape[1] != pair.rank:
                raise PromptError(
                    "adapter_unfit",
                    f"adapter {ref}: {name} has shape {found}, the base model's is "
                    f"{self.targets.get(name, 'missing')}",
                )
            # Packed columns are multiplied by 0 for other prompts: NaN and inf would leak.
            if not torch.stack([pair.a.abs().max(), pair.b.abs().max()]).max() <= MAX_WEIGHT:
                raise PromptError(
                    "adapter_unfit",
                    f"adapter {ref}: {name} has a weight that is no number or larger than "
                    f"{MAX_WEIGHT:g} (scaling included)",
                )

    def _put(self, weights: LoraWeights) -> _Resident:
        pairs = {n: LoraPair(self._on(p.a), self._on(p.b)) for n, p in weights.pairs.items()}
        return _Resident(pairs, _grams(self._router, pairs))

    def _on(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)


def _grams(
    router: Mapping[str, tuple[torch.Tensor, torch.Tensor]], pairs: Mapping[str, LoraPair]
) -> dict[str, torch.Tensor]:
    """G_i = B_rᵀ B_i (R_r, R) in float32 for every linear that the router has."""
    return {
        name: router[name][1].float().T @ pair.b.float()
        for name, pair in pairs.items()
        if name in router
    }
