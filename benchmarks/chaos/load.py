"""The load: jobs one after the other, so that a bounded number of prompts is always open.

What is submitted comes from the seed; when, from how fast the system is. A submission or a
cancellation that meets an outage is made again, with the same id, until it is through.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.chaos.pool import MAX_NEW_TOKENS, digest
from producer.client import Client
from ramole_core import keys
from ramole_core.errors import ConflictError, RamoleError
from ramole_core.jobs import Priority
from ramole_core.settings import Settings

OPEN_PROMPTS: Final = 400
LOOK_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 0.5
PRIORITIES: Final[tuple[Priority, ...]] = ("low", "normal", "normal", "high")
SHARD_SIZES: Final = (4, 8, 16)
JOB_PROMPTS: Final = (8, 48)
CANCELLED_SHARE: Final = 0.1


@dataclass(frozen=True)
class JobPlan:
    """One job: the numbers of its records, and when it is cancelled, if it is."""

    job_id: str
    records: tuple[int, ...]
    priority: Priority
    shard_size: int
    cancel_after: float | None


def job_plans(seed: int, num_records: int) -> Iterator[JobPlan]:
    """Jobs without end."""
    chance, number = random.Random(f"jobs {seed}"), 0
    while True:
        chosen = chance.choices(range(num_records), k=chance.randint(*JOB_PROMPTS))
        yield JobPlan(
            job_id=f"chaos-{number:05d}",
            records=tuple(chosen),
            priority=chance.choice(PRIORITIES),
            shard_size=chance.choice(SHARD_SIZES),
            cancel_after=chance.random() * 2 if chance.random() < CANCELLED_SHARE else None,
        )
        number += 1


class Load:
    """A thread that submits, cancels and looks after jobs. `jobs`: all that were submitted, or may
    have been; `outputs`: by job, the digest of every output when it was first seen."""

    def __init__(self, settings: Settings, records: list[dict[str, Any]], seed: int) -> None:
        self.jobs: list[JobPlan] = []
        self.outputs: dict[str, dict[str, str]] = {}
        self._client = Client(settings)
        self._records = records
        self._plans = job_plans(seed, len(records))
        self._open: dict[str, JobPlan] = {}
        self._to_cancel: dict[str, float] = {}  # job -> when
        self._stop = threading.Event()
        self._limit = float("inf")
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Submits from now on."""
        self._thread.start()

    def drain(self, seconds: float) -> set[str]:
        """Submits no more; waits until every job has ended. Returns those that have not.

        Raises what ended the thread, and ConflictError when a submission made again was taken for
        another one.
        """
        self._limit = time.monotonic() + seconds
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return set(self._open)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as e:
            self._error = e

    def _work(self) -> None:
        while not self._stop.is_set() or self._open:
            if time.monotonic() > self._limit:
                return
            self._cancel_due()
            self._look()
            if not self._stop.is_set() and self._num_open() < OPEN_PROMPTS:
                self._submit(next(self._plans))
            else:
                time.sleep(LOOK_SECONDS)

    def _num_open(self) -> int:
        return sum(len(plan.records) for plan in self._open.values())

    def _submit(self, plan: JobPlan) -> None:
        records = [self._records[i] for i in plan.records]
        self.jobs.append(plan)
        self._open[plan.job_id] = plan
        while True:
            try:
                self._client.submit(
                    records,
                    job_id=plan.job_id,
                    max_new_tokens=MAX_NEW_TOKENS,
                    priority=plan.priority,
                    shard_size=plan.shard_size,
                )
                break
            except ConflictError:
                raise
            except RamoleError:
                time.sleep(RETRY_SECONDS)
                if time.monotonic() > self._limit:
                    return  # it stays among those without end
        if plan.cancel_after is not None:
            self._to_cancel[plan.job_id] = time.monotonic() + plan.cancel_after

    def _cancel_due(self) -> None:
        for job_id, when in list(self._to_cancel.items()):
            if time.monotonic() < when:
                continue
            try:
                self._client.cancel(job_id)
            except ConflictError:  # it has ended
                pass
            except RamoleError:
                self._to_cancel[job_id] = time.monotonic() + RETRY_SECONDS
                continue
            del self._to_cancel[job_id]

    def _look(self) -> None:
        """Notes new outputs, as a user may read them now; closes the jobs that have ended."""
        store = self._client.store
        with suppress(RamoleError):
            for job_id in list(self._open):
                seen = self.outputs.setdefault(job_id, {})
                for entry in store.entries(keys.outputs(job_id)):
                    if entry.key not in seen:
                        seen[entry.key] = digest(store.get(entry.key))
                if job_id in self._to_cancel:
                    continue
                if store.exists(keys.finished(job_id)):
                    if seen:  # else the store was taken away just now
                        del self._open[job_id]
                elif store.exists(keys.cancelled(job_id)) and not _marked(self._client, job_id):
                    del self._open[job_id]


def _marked(client: Client, job_id: str) -> bool:
    """True while workers are still to let go of a cancelled job."""
    return any(client.store.exists(key(job_id)) for key in (keys.live, keys.cancelling))
