"""Keeps the leases of this process alive while its engine makes progress.

One thread beats every third of the lease, or sooner, so that nobody takes the worker for gone: it
renews all claims in hand and the worker's own heartbeat. When the engine or the encoder is stuck (a
hung device call cannot be cancelled), the process is ended, so that its supervisor starts a fresh
one and others take its shards over. When Redis is out of reach it tries on, and a lease that was
taken meanwhile is found lost at the next beat.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis import RedisError

from ramole_core import messages
from worker.ledger import Claim, Ledger

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Thread-safe set of claims that are renewed together."""

    def __init__(
        self,
        ledger: Ledger,
        lease_seconds: float,
        is_alive: Callable[[], bool],
        on_stuck: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._interval = min(lease_seconds, messages.ALIVE_SECONDS) / 3
        self._is_alive = is_alive
        self._on_stuck = on_stuck
        self._claims: set[Claim] = set()
        self._lost: set[Claim] = set()
        self._lock = threading.Lock()  # guards the two above
        self._beating = threading.Lock()  # a claim leaves before a renewal or after it
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
        """Renews the claim until the block ends; only then may it be given back, for a renewal
        takes back what nobody owns."""
        with self._lock:
            self._claims.add(claim)
        try:
            yield
        finally:
            with self._beating, self._lock:
                self._claims.discard(claim)
                self._lost.discard(claim)

    def is_lost(self, claim: Claim) -> bool:
        """True when the lease is known to belong to somebody else."""
        with self._lock:
            return claim in self._lost

    def beat(self) -> None:
        """One renewal of everything. Raises RedisError."""
        if not self._is_alive():
            logger.error("the engine or the encoder makes no progress: the process ends")
            self._on_stuck()
            return
        with self._beating:
            with self._lock:
                claims = list(self._claims - self._lost)  # what is lost is not taken back
            lost = self._ledger.renew(claims)
            with self._lock:
                self._lost.update(lost)

    def _run(self) -> None:
        while True:
            try:
                self.beat()
            except RedisError as e:
                logger.warning("leases not renewed: Redis: %s", e)
            except Exception:  # without this thread the process looks dead
                logger.exception("leases not renewed")
            if self._stop.wait(self._interval):
                return
