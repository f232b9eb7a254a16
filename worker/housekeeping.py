"""The reaper: what any one worker does for all, every few seconds, under a lock that runs out.

It sends lost shards again, ends jobs whose last worker died before the final record, takes in
jobs the ledger does not know (a wiped Redis, a lost message), and picks up uploads whose message
was lost. It also lets every worker see new adapters and the encoder that comes into use. A failing
step is logged and tried again.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from redis import RedisError

from ramole_core import messages
from ramole_core.adapters.registry import Registry
from ramole_core.errors import RamoleError
from ramole_core.settings import Settings
from worker.deaths import Coroner
from worker.dispatcher import Dispatcher
from worker.encoders import Encoders
from worker.ledger import REAPER_LOCK, SCAN_LOCK, Ledger
from worker.lifecycle import JobDesk
from worker.uploads import UploadDesk

logger = logging.getLogger(__name__)

SCAN_SECONDS: Final = 15.0
UPLOAD_GRACE_SECONDS: Final = 10.0
UPLOAD_SENT_SECONDS: Final = 120.0


class Housekeeper:
    """Daemon threads: the coroner, the reaper, the registry's follower, and the encoders' (whose
    step may take minutes)."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        desk: JobDesk,
        uploads: UploadDesk,
        registry: Registry,
        encoders: Encoders,
        coroner: Coroner,
        send: Callable[..., Any],
        settings: Settings,
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._desk = desk
        self._uploads = uploads
        self._registry = registry
        self._send = send
        self._reaper_seconds = settings.reaper_seconds
        self._coroner = coroner
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._every, args=(seconds, work), name=name, daemon=True)
            for seconds, work, name in (
                (settings.reaper_seconds, coroner.look, "coroner"),
                (settings.reaper_seconds, self.reap, "reaper"),
                (settings.registry_seconds, registry.refresh, "registry"),
                (settings.registry_seconds, encoders.refresh, "encoders"),
            )
        ]

    def start(self) -> None:
        """Looks for deaths, the predecessor's perhaps, before work is taken; starts the threads."""
        guarded(self._coroner.look)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads after the step in hand."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def reap(self) -> None:
        """One round, if no other worker has just made one."""
        if not self._ledger.try_lock(REAPER_LOCK, self._reaper_seconds * 0.9):
            return
        for ref in self._dispatcher.send_overdue():
            logger.warning("shard %s was lost and is queued again", ref.member)
        self._desk.finalise_all()
        if self._ledger.try_lock(SCAN_LOCK, SCAN_SECONDS):
            self._desk.scan()
            self._send_waiting_uploads()
        self._dispatcher.fill()

    def _send_waiting_uploads(self) -> None:
        for upload_id in self._uploads.waiting(time.time() - UPLOAD_GRACE_SECONDS):
            sent = f"{messages.KEY_PREFIX}lock:sent:{upload_id}"
            if not self._ledger.try_lock(sent, UPLOAD_SENT_SECONDS):
                continue
            logger.warning("upload %s has waited long and is queued again", upload_id)
            self._send(messages.REGISTER_ADAPTER, args=[upload_id], queue=messages.CONTROL_QUEUE)

    def _every(self, seconds: float, work: Callable[[], Any]) -> None:
        while not self._stop.wait(seconds):
            guarded(work)


def guarded(work: Callable[[], Any]) -> None:
    """A step that is tried again later: what it raises is logged."""
    try:
        work()
    except (RamoleError, RedisError, OSError) as e:
        logger.warning("housekeeping: %s: %s", type(e).__name__, e)
    except Exception:
        logger.exception("housekeeping failed")
