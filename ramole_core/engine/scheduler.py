"""Which waiting prompts run together. Policy only: no tensors, no clock of its own.

A batch is due when `batch_size` prompts wait, or when the oldest has waited `interval_seconds`.
It always holds the oldest prompt, so nothing starves: a prompt waits for at most as many batches
as there were older prompts (a second pass of gate `cascade` is as old as its prompt). The rest are
the prompts nearest to it in length (little padding), then those that share its adapters (few
experts, a cheaper mixture), then the older ones. Limits: `batch_size` prompts, `max_batch_tokens`
padded tokens, one router version, `bank_size` adapters.
"""

import math
from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as Many

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.sequence import Sequence


def padded_tokens(sequences: Iterable[Sequence]) -> int:
    """Tokens of a batch at its end: every prompt as long as the longest, as many answer tokens."""
    members = list(sequences)
    longest = max((len(s.prompt_ids) for s in members), default=0)
    return len(members) * (longest + max((s.max_new_tokens for s in members), default=0))


class Scheduler:
    """The waiting prompts. Not thread-safe: the engine holds its lock around every call."""

    def __init__(
        self, batch_size: int, max_batch_tokens: int, bank_size: int, interval_seconds: float
    ) -> None:
        self.batch_size = batch_size
        self.max_batch_tokens = max_batch_tokens
        self.bank_size = bank_size
        self.interval_seconds = interval_seconds
        self._waiting: list[Sequence] = []  # oldest first
        self._token_limit = max_batch_tokens  # lower for a while after running out of memory

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Puts a prompt into the line, behind those that arrived no later."""
        insort(self._waiting, sequence, key=lambda s: s.arrived_at)

    def wait_seconds(self, now: float) -> float | None:
        """How long until a batch is due: 0 when it is, None when nothing waits."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self.batch_size:
            return 0.0
        return max(0.0, self._waiting[0].arrived_at + self.interval_seconds - now)

    def next_batch(self, now: float) -> list[Sequence]:
        """Takes the next batch out of the line; empty when none is due. Cancelled prompts leave
        the line here."""
        self._waiting = [s for s in self._waiting if not _left(s)]
        if self.wait_seconds(now) != 0.0:
            return []
        batch = self._choose()
        taken = set(map(id, batch))
        self._waiting = [s for s in self._waiting if id(s) not in taken]
        return batch

    def drain(self) -> list[Sequence]:
        """Takes everything out of the line."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def ran_out_of_memory(self, sequences: Many[Sequence]) -> None:
        """Batches get half as big as the one that did not fit, until others did."""
        self._token_limit = max(1, padded_tokens(sequences) // 2)

    def finished_batch(self) -> None:
        """A batch fitted: the limit goes back up by an eighth."""
        self._token_limit = min(self.max_batch_tokens, self._token_limit * 9 // 8 + 1)

    def _choose(self) -> list[Sequence]:
        oldest, *others = self._waiting
        batch = _Batch(self, oldest)
        wanted = set(oldest.adapters)

        def distance(s: Sequence) -> tuple[int, int, tuple[AdapterRef, ...]]:
            octaves = math.log2(len(s.prompt_ids) / len(oldest.prompt_ids))
            return abs(round(4 * octaves)), len(set(s.adapters) - wanted), s.adapters

        for candidate in sorted(others, key=distance):  # stable: the older first
            if len(batch.members) == self.batch_size:
                break
            batch.add_if_it_fits(candidate, self._token_limit)
        return batch.members


def _left(s: Sequence) -> bool:
    """True when the prompt was cancelled. The second call tells whoever waits for its future:
    `concurrent.futures.wait` would otherwise never return."""
    return s.future.cancelled() and not s.future.set_running_or_notify_cancel()


class _Batch:
    """A batch in the making: always within the scheduler's limits."""

    def __init__(self, limits: Scheduler, first: Sequence) -> None:
        self.limits = limits
        self.members = [first]
        self.adapters = set(first.adapters)
        self.router = first.router
        self.longest = len(first.prompt_ids)
        self.most_new = first.max_new_tokens

    def add_if_it_fits(self, s: Sequence, token_limit: int) -> None:
        adapters = self.adapters | set(s.adapters)
        longest = max(self.longest, len(s.prompt_ids))
        most_new = max(self.most_new, s.max_new_tokens)
        fits = (
            (len(self.members) + 1) * (longest + most_new) <= token_limit
            and len(adapters) <= self.limits.bank_size
            and (s.router is None or self.router in (None, s.router))
        )
        if fits:
            self.members.append(s)
            self.adapters, self.longest, self.most_new = adapters, longest, most_new
            self.router = self.router or s.router
