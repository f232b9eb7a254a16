"""Puts on the device what prompts need: adapters and routers, held for as long as they run.

What cannot be loaded is charged to the prompts that need it; running out of memory and losing the
device are everybody's affair and are raised.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Many

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.failures import Failure, as_prompt_error
from ramole_core.engine.sequence import Sequence
from ramole_core.errors import RamoleError
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.router_shelf import Router

log = logging.getLogger(__name__)


class Admission:
    """`look_ahead` at those that wait, `admit` those that enter, `release` each when it is over."""

    def __init__(self, bank: AdapterBank, on_progress: Callable[[], None] = lambda: None) -> None:
        self.bank = bank
        self._on_progress = on_progress  # a load takes as long as the store does, and fails as late
        self._pinned: dict[int, tuple[tuple[AdapterRef, ...], Router | None]] = {}  # by sequence
        self._failed: dict[AdapterRef, Exception] = {}  # loads that failed ahead of time

    def look_ahead(self, window: Iterable[Sequence]) -> None:
        """Begins to load the adapters of the waiting prompts, the first ones first."""
        wanted = dict.fromkeys(ref for s in window for ref in s.adapters)
        failed = self._failed | self.bank.take_failures()
        # Nobody waits for the others any more: who needs them later may have more luck.
        self._failed = {ref: error for ref, error in failed.items() if ref in wanted}
        self.bank.want([ref for ref in wanted if ref not in self._failed])

    def ready(self, ref: AdapterRef) -> bool:
        """The adapter is here, or it is known that it cannot be."""
        return self.bank.ready(ref) or ref in self._failed

    def admit(self, sequences: Many[Sequence]) -> list[tuple[Sequence, RamoleError]]:
        """Loads what is not here yet and pins; returns the prompts that cannot run, with the
        reason."""
        # Those that are here first: a load must not evict what the same newcomers need.
        needed = {ref for s in sequences for ref in s.adapters}
        errors: dict[AdapterRef, RamoleError] = {}
        routers: dict[str | None, Router | RamoleError | None] = {None: None}
        here = sorted(needed, key=lambda ref: (not self.bank.ready(ref), ref))
        held = []
        try:
            for ref in here:
                error = self._acquire(ref)
                if error is None:
                    held.append(ref)
                else:
                    errors[ref] = error
            for version in {s.router for s in sequences if s.router}:
                routers[version] = self._router(version)
            return [
                (sequence, error)
                for sequence in sequences
                if (error := self._pin(sequence, errors, routers)) is not None
            ]
        finally:
            for ref in held:
                self.bank.release(ref)

    def release(self, sequence: Sequence) -> None:
        """The prompt is over: its adapters may be evicted."""
        refs, _ = self._pinned.pop(id(sequence), ((), None))
        for ref in refs:
            self.bank.release(ref)

    def release_all(self) -> None:
        """Nothing runs any more."""
        for refs, _ in self._pinned.values():
            for ref in refs:
                self.bank.release(ref)
        self._pinned.clear()

    def _pin(
        self,
        sequence: Sequence,
        errors: Mapping[AdapterRef, RamoleError],
        routers: Mapping[str | None, Router | RamoleError | None],
    ) -> RamoleError | None:
        """Every adapter in question is here, or its error is known; the same of the routers."""
        bad = (errors[ref] for ref in sequence.adapters if ref in errors)
        found = next(bad, routers[sequence.router])
        if isinstance(found, RamoleError):
            return found
        for ref in sequence.adapters:
            self.bank.acquire(ref)
        self._pinned[id(sequence)] = sequence.adapters, found
        return None

    def _acquire(self, ref: AdapterRef) -> RamoleError | None:
        try:
            if (failed := self._failed.pop(ref, None)) is not None:
                if not Failure.of(failed).out_of_memory:
                    raise failed
                self.bank.free_unused()  # it was read beside others that wait; alone it may fit
            self.bank.acquire(ref)
        except Exception as e:
            return _charged(e, "adapter_unavailable", f"adapter {ref}")
        finally:
            self._on_progress()
        return None

    def _router(self, version: str) -> Router | RamoleError:
        try:
            return self.bank.router(version)
        except Exception as e:
            return _charged(e, "router_unavailable", f"router {version}")
        finally:
            self._on_progress()


def _charged(error: Exception, code: str, what: str) -> RamoleError:
    """The prompt's error for `error`, which is raised again when no prompt is to blame."""
    if Failure.of(error).of_the_process:
        raise error
    log.warning("%s cannot be loaded", what, exc_info=error)
    return as_prompt_error(error, code, what)
