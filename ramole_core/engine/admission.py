"""Puts on the device what a batch needs: its adapters, pinned for as long as it runs, and a router.

What cannot be loaded is charged to the prompts that need it; running out of memory and losing the
device are the batch's affair and are raised.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Protocol

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.failures import Failure, as_prompt_error
from ramole_core.engine.sequence import Sequence
from ramole_core.errors import RamoleError
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.packed import Packed
from ramole_core.mole.router import RouterWeights

log = logging.getLogger(__name__)


class RouterSource(Protocol):
    """Where routers come from."""

    def load_router(self, version: str) -> RouterWeights:
        """The weights of router `version`. May raise anything."""
        ...


class Admission:
    """One batch at a time: `admit`, then `pack`, and `release` when it is over."""

    def __init__(
        self,
        bank: AdapterBank,
        routers: RouterSource,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.bank = bank
        self._on_progress = on_progress  # a load may take as long as the store does
        self.routers = routers
        self._pinned: list[AdapterRef] = []

    def admit(self, sequences: Many[Sequence]) -> list[tuple[Sequence, RamoleError]]:
        """Loads and pins; returns the prompts that cannot run, with the reason."""
        needed = {ref for s in sequences for ref in s.adapters}
        # Those that are here first: a load must not evict what the same batch needs.
        refs = sorted(needed, key=lambda ref: (ref not in self.bank, ref))
        failures = {ref: error for ref in refs if (error := self._pin(ref)) is not None}
        refused: list[tuple[Sequence, RamoleError]] = []
        for sequence in sequences:
            bad = next((ref for ref in sequence.adapters if ref in failures), None)
            if bad is not None:
                refused.append((sequence, failures[bad]))
        failure = self._use_router(sequences)
        if failure is not None:
            known = {id(sequence) for sequence, _ in refused}
            needing = [s for s in sequences if s.router and id(s) not in known]
            refused += [(sequence, failure) for sequence in needing]
        return refused

    def pack(self, sequences: Many[Sequence]) -> Packed:
        """The admitted prompts' experts, side by side."""
        return self.bank.pack([ref for s in sequences for ref in s.adapters])

    def release(self) -> None:
        """The batch is over: its adapters may be evicted."""
        while self._pinned:
            self.bank.release(self._pinned.pop())

    def _pin(self, ref: AdapterRef) -> RamoleError | None:
        try:
            self.bank.acquire(ref)
            self._on_progress()
        except Exception as e:
            return _charged(e, "adapter_unavailable", f"adapter {ref}")
        self._pinned.append(ref)
        return None

    def _use_router(self, sequences: Many[Sequence]) -> RamoleError | None:
        """The scheduler put at most one version into a batch; who needs none keeps what is here."""
        version = next((s.router for s in sequences if s.router), None)
        if version is None or version == self.bank.router_version:
            return None
        try:
            self.bank.use_router(version, self.routers.load_router(version))
        except Exception as e:
            return _charged(e, "router_unavailable", f"router {version}")
        return None


def _charged(error: Exception, code: str, what: str) -> RamoleError:
    """The prompt's error for `error`, which is raised again when no prompt is to blame."""
    if Failure.of(error).of_the_process:
        raise error
    log.warning("%s cannot be loaded", what, exc_info=error)
    return as_prompt_error(error, code, what)
