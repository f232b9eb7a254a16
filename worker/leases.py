"""Keeps the leases of this process alive while its engine makes progress.

One thread beats every third of the lease: it renews all claims in hand and the worker's own
heartbeat. When the engine has work but finished no step for `stall_seconds`, it stops renewing, so
that other workers take over; when Redis is out of reach it tries on, and a lease that runs out
meanwhile is found lost at the next beat.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from redis import RedisError

from worker.ledger import Claim, Ledger

logger = logging.getLogger(__name__)

STALL_SECONDS: Final = 120.0


class LeaseKeeper:
    """Thread-safe set of claims that are renewed together."""

    def __init__(
        self,
        ledger: Ledger,
        lease_seconds: float,
        is_alive: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._interval = lease_seconds / 3
        self._is_alive = is_alive
        self._now = now
        self._claims: set[Claim] = set()
        self._lost: set[Claim] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and takes the worker off the list of the living."""
        self._stop.set()
        self._thread.join()
        try:
            self._ledger.leave()
        except RedisError as e:
            logger.warning("could not sign off: %s", e)

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Renews the claim until the block ends."""
        with self._lock:
            self._claims.add(claim)
        try:
            yield
        finally:
            with self._lock:
                self._claims.discard(claim)
                self._lost.discard(claim)

    def is_lost(self, claim: Claim) -> bool:
        """True when the lease is known to belong to somebody else."""
        with self._lock:
            return claim in self._lost

    def beat(self) -> None:
        """One renewal of everything. Raises RedisError."""
        if not self._is_alive():
            logger.error("the engine makes no progress: its leases are left to run out")
            return
        self._ledger.heartbeat(self._now())
        with self._lock:
            claims = list(self._claims)
        lost = set(self._ledger.renew(claims))
        with self._lock:
            self._lost |= {claim for claim in claims if claim.ref in lost} & self._claims

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.beat()
            except RedisError as e:
                logger.warning("leases not renewed: Redis: %s", e)
