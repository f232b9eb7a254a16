"""Uploads on the worker's side: the full check, the vector, the new registry entry."""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.gate import Limits
from ramole_core.adapters.reception import receive
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.staging import UPLOAD_FILE
from ramole_core.adapters.verdict import Verdict, VerdictError, write_verdict
from ramole_core.errors import AdapterRefusedError, InvalidInputError, PromptError
from ramole_core.jobs import checked_name
from ramole_core.store import ObjectStore
from worker.encoders import Encoders

logger = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 2  # an upload in hand takes up to three times its size in memory
MAX_WAITING: Final = 100


class UploadDesk:
    """Receives staged uploads; the verdict lies in the store under the upload's id."""

    def __init__(
        self,
        store: ObjectStore,
        registry: Registry,
        base: BaseInfo,
        limits: Limits,
        encoders: Encoders,
        workdir: Path,
    ) -> None:
        self._store = store
        self._registry = registry
        self._base = base
        self._limits = limits
        self._encoders = encoders
        self._workdir = workdir
        self._turn = threading.BoundedSemaphore(MAX_AT_ONCE)

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether one of MAX_AT_ONCE is free; if so it is the caller's until the block ends."""
        is_free = self._turn.acquire(blocking=False)
        try:
            yield is_free
        finally:
            if is_free:
                self._turn.release()

    def line(self, upload_id: str) -> Iterator[str]:
        """The upload, then one after the other those that wait by now, each once."""
        seen: set[str] = set()
        following: str | None = upload_id
        while following is not None:
            yield following
            seen.add(following)
            following = next((each for each in self.waiting(math.inf) if each not in seen), None)

    def receive(self, upload_id: str) -> Verdict:
        """Accepts or refuses one upload. May be called again for the same id at any time."""

        def describe(ref: AdapterRef, samples: list[str]) -> None:
            try:
                self._encoders.describe(ref, samples)
            except PromptError as e:
                raise AdapterRefusedError("samples_not_embeddable", str(e)) from e

        self._registry.refresh()
        verdict = receive(
            upload_id,
            self._store,
            self._registry,
            self._base,
            self._limits,
            describe,
            self._workdir,
        )
        self._registry.refresh()
        logger.info("upload %s: %s@%s", verdict.status, verdict.name, verdict.version)
        return verdict

    def give_up(self, upload_id: str) -> None:
        """Refuses an upload that ended its worker (or broke it) each time it was looked at."""
        message = "given up: the worker did not survive looking at it (RAMOLE_MAX_ATTEMPTS)"
        refusal = AdapterRefusedError("given_up", message)
        error = VerdictError(code=refusal.code, reason=refusal.reason, message=message)
        verdict = Verdict(status="refused", name=None, version=None, error=error)
        write_verdict(self._store, upload_id, verdict)
        logger.error("upload given up")

    def waiting(self, before_seconds: float) -> list[str]:
        """Complete uploads staged before that time and still there: their message is lost.

        At most MAX_WAITING of them; folders whose name is no id are not ours and stay.
        """
        found = []
        for entry in self._store.entries(keys.STAGING):
            upload_id, _, name = entry.key.removeprefix(keys.STAGING).partition("/")
            if name != UPLOAD_FILE or entry.modified_seconds >= before_seconds:
                continue
            with suppress(InvalidInputError):
                found.append(checked_name("upload", upload_id))
            if len(found) == MAX_WAITING:
                break
        return found
