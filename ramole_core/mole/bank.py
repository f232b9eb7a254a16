"""The adapters that lie on the device: a bounded pool with pins, filled beside the engine's thread.

One pool holds adapters of any ranks and targets. `want` says what will be needed and returns at
once; what has been read lies here from the next `want` or `wait_for_load` on. Routers are no part
of the pool: `pack` joins adapters and a router.
Guarantees: never more than `capacity` adapters, those on their way included; an adapter in use
(pinned) is never evicted; an adapter that cannot be read or does not fit is not kept. Bounds in
bytes (`limit_bytes`) are kept at the cost of what nobody uses or wants. For one thread; only the
sources are called from others as well.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, Protocol

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights
from ramole_core.errors import PromptError, RamoleError
from ramole_core.mole.loader import Loader
from ramole_core.mole.packed import Packed
from ramole_core.mole.packing import PACK_SHARE, PackCache, build_pack
from ramole_core.mole.resident import Resident, check_fits, put_on_device
from ramole_core.mole.router import RouterSource
from ramole_core.mole.router_shelf import Router, RouterShelf

CLOSE_SECONDS: Final = 5.0


class AdapterSource(Protocol):
    """Where adapters come from (the on-disk cache over the store)."""

    def load(self, ref: AdapterRef) -> LoraWeights:
        """The weights of `ref`. May raise anything; RamoleError says what went wrong. Two threads
        may call it at the same time."""
        ...


class BankFullError(RamoleError):
    """Raised when every adapter in the bank is in use. The scheduler never lets it happen."""

    code = "bank_full"


class AdapterBank:
    """See the module's docstring. `targets` are the base model's linears -> (D_out, D_in);
    `groups` puts together those that read the same input (None: every linear is alone); `clock`
    gives seconds."""

    def __init__(
        self,
        targets: Mapping[str, tuple[int, int]],
        capacity: int,
        source: AdapterSource,
        device: torch.device,
        dtype: torch.dtype,
        groups: Sequence[Sequence[str]] | None = None,
        routers: RouterSource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.targets = targets
        self.capacity = capacity
        self.source = source
        self.device = device
        self.dtype = dtype
        self.groups = [(target,) for target in targets] if groups is None else groups
        assert sorted(chain.from_iterable(self.groups)) == sorted(targets), "each target once"
        self.num_loads = 0
        self.num_waits = 0  # times that `acquire` did not find its adapter here
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._residents: dict[AdapterRef, Resident] = {}  # least recently used first
        self._pins: Counter[AdapterRef] = Counter()  # those above 0 only
        self._wanted: Collection[AdapterRef] = ()  # by the last `want`
        self._loading: set[AdapterRef] = set()  # asked of the loader, not yet among the residents
        self._failures: dict[AdapterRef, Exception] = {}
        self._loader = Loader(lambda ref: self._put(self._read(ref)), clock)
        self._packs = PackCache()
        self._max_bytes = self._max_pack_bytes = math.inf
        self.router_source = routers
        self._routers = RouterShelf(routers, targets, device, dtype)

    def __len__(self) -> int:
        return len(self._residents)

    def limit_bytes(self, adapters: int, packs: int) -> None:
        """What adapters and packs may take. Adapters that are in use or wanted and the pack made
        last stay, however large they are: a prompt that needs them could not run otherwise."""
        self._max_bytes, self._max_pack_bytes = adapters, packs

    def check_admissible(self, experts: Sequence[AdapterRef]) -> None:
        """Raises PromptError when one prompt needs more adapters than the bank holds."""
        if len(experts) > self.capacity:
            raise PromptError(
                "too_many_experts",
                f"{len(experts)} experts for one prompt, the bank holds {self.capacity} "
                "(RAMOLE_BANK_SIZE); use a smaller k",
            )

    # Filling

    def want(self, refs: Iterable[AdapterRef]) -> None:
        """Begins to load what is not here, the first of `refs` first, as far as there is room.

        Room is made at the cost of adapters that are not in `refs`, those used longest ago first,
        and then of those behind the one to load. Replaces what was wanted before: loads that have
        not begun are dropped. A failed load gives its room back, not the adapter that made it.
        """
        self._collect()
        self._withdraw()
        self._wanted = places = {ref: place for place, ref in enumerate(dict.fromkeys(refs))}
        missing = [ref for ref in places if ref not in self._residents]
        victims = self._victims(places)
        asked: list[AdapterRef] = []
        for ref in missing:
            if ref in self._loading or ref in self._failures:
                continue
            if self._is_full():
                victim = next(victims, None)
                if victim is None or places.get(victim, len(places)) < places[ref]:
                    break
                del self._residents[victim]
            self._loading.add(ref)
            asked.append(ref)
        self._loader.submit(asked)

    def ready(self, ref: AdapterRef) -> bool:
        """True when `ref` lies here."""
        return ref in self._residents

    def take_failures(self) -> dict[AdapterRef, Exception]:
        """Why wanted adapters could not be loaded. Each failure is handed out once; until then
        the adapter is not tried again."""
        failures, self._failures = self._failures, {}
        return failures

    def wait_for_load(self, seconds: float) -> bool:
        """Blocks until a load has ended: True, well or badly. False when the time is up or when
        nothing is loading."""
        ended = self._loader.wait(seconds)
        self._collect()
        return ended

    def loading_seconds(self) -> float:
        """How long the load that is under way has taken so far; 0 without one."""
        return self._loader.loading_seconds()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Ends the loading; waits for a load that has begun, at most so long."""
        self._withdraw()
        self._loader.close(seconds)
        self._collect()

    # Use

    def acquire(self, ref: AdapterRef) -> None:
        """Pins `ref`, loading it when it is not here. Raises what the source raises, PromptError
        when the adapter does not fit the base model, BankFullError when all others are pinned."""
        if ref not in self._residents:
            self.num_waits += 1
            self._fetch(ref)
        self._residents[ref] = self._residents.pop(ref)
        self._pins[ref] += 1

    def release(self, ref: AdapterRef) -> None:
        """Takes one pin off; the adapter stays until its room is needed."""
        assert self._pins[ref] > 0, f"{ref} is not in use"
        self._pins[ref] -= 1
        if not self._pins[ref]:
            del self._pins[ref]

    def router(self, version: str) -> Router:
        """The router on the device; it stays there while the caller holds it. Raises what the
        source raises, and InvalidInputError when it does not fit the base model."""
        return self._routers.get(version)

    def pack(self, refs: Sequence[AdapterRef], router: str | None = None) -> Packed:
        """The adapters `refs` side by side under a router. Adapters must be here unless that pack
        is kept from an earlier call. Raises what `router` raises."""
        experts = tuple(sorted(set(refs)))
        packed = self._packs.get(experts, router)
        if packed is None:
            held = None if router is None else self.router(router)
            residents = [self._residents[ref] for ref in experts]
            packed = build_pack(experts, residents, self.groups, held)
            max_bytes = min(PACK_SHARE * self._full_bytes(), self._max_pack_bytes)
            self._packs.keep(packed, max_bytes)
        return packed

    def packed_sets(self, router: str | None = None) -> list[frozenset[AdapterRef]]:
        """The experts of the kept packs under `router` whose adapters are all here, the pack used
        last first."""
        kept = self._packs.experts_under(router)
        return [frozenset(experts) for experts in kept if all(map(self.ready, experts))]

    def num_numbers(self, ref: AdapterRef) -> int:
        """How many numbers the adapter `ref`, which is here, consists of."""
        return self._residents[ref].memory.numel()

    def free_unused(self) -> None:
        """Gives up what is not in use: memory ran out."""
        self._withdraw()
        self._packs.clear()
        self._routers.free_unused()
        self._residents = {ref: r for ref, r in self._residents.items() if ref in self._pins}

    @property
    def is_loading(self) -> bool:
        """True while something is read, or waits for that."""
        return bool(self._loading)

    # Within

    def _fetch(self, ref: AdapterRef) -> None:
        self._withdraw()
        while ref in self._loading:  # it has begun
            self._await_load()
        if ref in self._failures:
            raise self._failures.pop(ref)
        if ref not in self._residents:
            weights = self._read(ref)  # before anything is evicted for it
            self._make_room()
            self._keep(ref, self._put(weights))

    def _make_room(self) -> None:
        while self._is_full():
            victim = next(self._victims({}), None)
            if victim is not None:
                del self._residents[victim]
            elif self._loading:
                self._await_load()
            else:
                raise BankFullError(f"all {self.capacity} adapters of the bank are in use")

    def _is_full(self) -> bool:
        return len(self._residents) + len(self._loading) >= self.capacity

    def _victims(self, places: Mapping[AdapterRef, int]) -> Iterator[AdapterRef]:
        """Whom to evict: what is not wanted, used longest ago first, then the least urgent."""
        unpinned = [ref for ref in self._residents if ref not in self._pins]
        yield from (ref for ref in unpinned if ref not in places)
        yield from sorted(filter(places.__contains__, unpinned), key=lambda ref: -places[ref])

    def _full_bytes(self) -> float:
        """What a full bank would take if all adapters were as large as the mean of these."""
        return self.capacity * self._num_bytes() / max(1, len(self._residents))

    def _num_bytes(self) -> int:
        return sum(resident.memory.nbytes for resident in self._residents.values())

    def _withdraw(self) -> None:
        self._loading.difference_update(self._loader.withdraw())

    def _await_load(self) -> None:
        self._loader.wait(None)
        self._collect()

    def _collect(self) -> None:
        for ref, outcome in self._loader.take():
            self._loading.discard(ref)
            if isinstance(outcome, Resident):
                self._keep(ref, outcome)
            else:
                self._failures[ref] = outcome

    def _keep(self, ref: AdapterRef, resident: Resident) -> None:
        if self._stream is not None:  # its memory must outlive what this thread queues with it
            resident.memory.record_stream(torch.cuda.current_stream(self.device))
        self._drop_excess(resident.memory.nbytes)
        self._residents[ref] = resident
        self.num_loads += 1

    def _drop_excess(self, more_bytes: int) -> None:
        """Until so many more are within the bound, or nobody is left to drop."""
        excess = self._num_bytes() + more_bytes - self._max_bytes
        unused = [r for r in self._residents if r not in self._pins and r not in self._wanted]
        for ref in unused:
            if excess <= 0:
                return
            excess -= self._residents.pop(ref).memory.nbytes

    def _read(self, ref: AdapterRef) -> LoraWeights:
        weights = self.source.load(ref)
        check_fits(ref, weights, self.targets)
        return weights

    def _put(self, weights: LoraWeights) -> Resident:
        return put_on_device(weights, self.device, self.dtype, self._stream)
