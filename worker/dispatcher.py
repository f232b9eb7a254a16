"""Keeps a bounded number of shards in the queue, round-robin over the jobs of each priority.

A job of a million prompts so starves nobody, and a wiped queue loses little. Any worker may fill
at any time: taking the next shard is one atomic step, and one that is taken but not sent is found
overdue and sent again.
"""

from collections.abc import Callable
from typing import Any, Final

from kombu.exceptions import KombuError

from ramole_core import messages
from ramole_core.errors import BrokerUnavailableError
from worker.ledger import Ledger, ShardRef

MESSAGE_GRACE_SECONDS: Final = 10.0

Send = Callable[..., Any]  # Celery's app.send_task


class Dispatcher:
    """Sends shards into the queue."""

    def __init__(self, ledger: Ledger, send: Send, shards_per_worker: int) -> None:
        self._ledger = ledger
        self._send = send
        self._per_worker = shards_per_worker

    def fill(self) -> int:
        """Enqueues shards up to the bound; returns how many."""
        count = 0
        while (found := self._ledger.next_shard(self._per_worker)) is not None:
            ref, priority = found
            self._enqueue(ref, messages.PRIORITY[priority])
            count += 1
        return count

    def send_overdue(self) -> list[ShardRef]:
        """Enqueues again what was lost with a worker or with its message."""
        overdue = self._ledger.overdue(self._ledger.num_queued(), MESSAGE_GRACE_SECONDS)
        for ref in overdue:
            self._enqueue(ref, messages.PRIORITY[self._ledger.priority(ref.job_id)])
        return overdue

    def _enqueue(self, ref: ShardRef, priority: int) -> None:
        try:
            self._send(
                messages.RUN_SHARD,
                args=[ref.job_id, ref.shard],
                queue=messages.SHARD_QUEUE,
                priority=priority,
            )
        except KombuError as e:  # Redis is away; the shard is found overdue
            raise BrokerUnavailableError(f"Redis (RAMOLE_BROKER_URL): {e}") from e
