"""Uploads on the worker's side: the full check, the vector, the new registry entry."""

import logging
from pathlib import Path

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.gate import Limits
from ramole_core.adapters.reception import Verdict, receive
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import AdapterRefusedError, PromptError
from ramole_core.retrieval.vectors import VectorShelf
from ramole_core.store import ObjectStore

logger = logging.getLogger(__name__)


class UploadDesk:
    """Receives staged uploads; the verdict lies in the store under the upload's id."""

    def __init__(
        self,
        store: ObjectStore,
        registry: Registry,
        base: BaseInfo,
        limits: Limits,
        shelf: VectorShelf,
        workdir: Path,
    ) -> None:
        self._store = store
        self._registry = registry
        self._base = base
        self._limits = limits
        self._shelf = shelf
        self._workdir = workdir

    def receive(self, upload_id: str) -> Verdict:
        """Accepts or refuses one upload. May be called again for the same id at any time."""

        def describe(ref: AdapterRef, samples: list[str]) -> None:
            try:
                self._shelf.describe(ref, samples)
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

    def waiting(self, before_seconds: float) -> list[str]:
        """Complete uploads staged before that time and still there: their message is lost."""
        found = []
        for upload_id in self._store.children(keys.STAGING):
            entries = {e.key: e for e in self._store.entries(keys.staging(upload_id))}
            last = entries.get(keys.staging(upload_id) + "upload.json")
            if last is not None and last.modified_seconds < before_seconds:
                found.append(upload_id)
        return found
