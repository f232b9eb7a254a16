"""Adapter versions on this machine's disk: `<folder>/<name>/<version>/`. Needs torch to load.

A version is downloaded into a temporary folder, checked against its card's hashes once, and
renamed into place, so a cut leaves nothing half. A file of another size than its card says is
fetched again. What was used longest ago is pruned beyond `max_bytes`. Safe to share between
threads, and between processes that use the same folder.
"""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.adapters.card import CARD_FILE, Card, FileInfo, card_key
from ramole_core.adapters.names import FILES
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights
from ramole_core.errors import AdapterRefusedError, NotFoundError, PromptError
from ramole_core.store.base import ObjectStore, local_file

DEFAULT_MAX_BYTES: Final = 20 << 30
_TMP: Final = ".tmp"
_STALE_SECONDS: Final = 3600.0


class AdapterCache:
    """Source of LoraWeights by reference."""

    def __init__(
        self, store: ObjectStore, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # A lock lives while somebody waits for it or holds it.
        self._busy: WeakValueDictionary[AdapterRef, threading.Lock] = WeakValueDictionary()

    def load(self, ref: AdapterRef) -> LoraWeights:
        """The weights of a version, downloaded when they are not here.

        Raises PromptError('adapter_unavailable') when the version does not exist or is damaged in
        the store, UnavailableError when the store does not answer or this disk is full.
        """
        with self._one_at_a_time(ref):
            return self._cached(ref) or self._downloaded(ref)

    def _cached(self, ref: AdapterRef) -> LoraWeights | None:
        """The weights when all files are here and readable; what is damaged is thrown away."""
        from ramole_core.adapters.loading import load_lora

        folder = self._path(ref)
        try:
            card = Card.model_validate_json((folder / CARD_FILE).read_bytes())
            if any((folder / name).stat().st_size != card.files[name].size for name in FILES):
                raise AdapterRefusedError("damaged", f"{folder}: a file was cut")
            weights = load_lora(folder)
            os.utime(folder / CARD_FILE)  # the time of last use
        except (AdapterRefusedError, ValidationError, KeyError, OSError):
            self._discard(folder)
            return None
        return weights

    def _downloaded(self, ref: AdapterRef) -> LoraWeights:
        """Fetches, checks, loads and only then places: nobody prunes what we read from."""
        from ramole_core.adapters.loading import load_lora

        temporary = self._folder / _TMP / secrets.token_hex(8)
        try:
            with local_file(self._folder):  # a full disk is no fault of the adapter
                temporary.mkdir(parents=True)
                self._fetch(ref, temporary)
                weights = load_lora(temporary)
                self._path(ref).parent.mkdir(parents=True, exist_ok=True)
                with suppress(OSError):  # another process was first
                    os.rename(temporary, self._path(ref))
                self._prune(keep=ref)
        except AdapterRefusedError as e:
            raise _unavailable(ref, str(e)) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return weights

    def _fetch(self, ref: AdapterRef, folder: Path) -> None:
        """Downloads and checks. Raises PromptError."""
        try:
            data = self._store.get(card_key(ref))
            card = Card.model_validate_json(data)
            for name in FILES:
                self._store.download(keys.adapter(ref) + name, folder / name)
                if FileInfo.of(folder / name) != card.files.get(name):
                    raise _unavailable(ref, f"{name} differs from its card")
        except NotFoundError as e:
            raise _unavailable(ref, "it is not in the store") from e
        except ValidationError as e:
            raise _unavailable(ref, "its card is not readable") from e
        (folder / CARD_FILE).write_bytes(data)

    def _prune(self, keep: AdapterRef) -> None:
        """Removes what was used longest ago until the rest fits `max_bytes`."""
        kept, total = self._path(keep), 0
        used = sorted(self._used(), reverse=True, key=lambda item: (item[0] == kept, item[1]))
        for folder, _, size in used:
            total += size
            if total > self._max_bytes and folder != kept:
                self._discard(folder)
        for left in (self._folder / _TMP).glob("*"):
            if _age_seconds(left) > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def _used(self) -> Iterator[tuple[Path, float, int]]:
        """(folder, time of last use, bytes) of every version here."""
        for card in self._folder.glob(f"[!.]*/*/{CARD_FILE}"):  # not what is still on its way
            try:
                size = sum(file.stat().st_size for file in card.parent.iterdir())
                yield card.parent, card.stat().st_mtime, size
            except OSError:
                continue

    def _discard(self, folder: Path) -> None:
        """Removes a version's folder; the rename makes it vanish at once."""
        grave = self._folder / _TMP / secrets.token_hex(8)
        try:
            os.rename(folder, grave)
        except OSError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    def _path(self, ref: AdapterRef) -> Path:
        return self._folder / ref.name / str(ref.version)

    @contextmanager
    def _one_at_a_time(self, ref: AdapterRef) -> Iterator[None]:
        with self._lock:
            lock = self._busy.setdefault(ref, threading.Lock())
        with lock:
            yield


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _unavailable(ref: AdapterRef, why: str) -> PromptError:
    return PromptError("adapter_unavailable", f"adapter {ref}: {why}")
