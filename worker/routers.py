"""Router versions, read from the store."""

import threading
from typing import Final

from ramole_core import keys
from ramole_core.jobs import checked_name
from ramole_core.mole.router import CARD_FILE, WEIGHTS_FILE, RouterWeights
from ramole_core.store import ObjectStore

MAX_KEPT: Final = 3


class StoredRouters:
    """The engine's RouterSource over `routers/<version>/`. Keeps the versions asked for last: they
    never change. Safe to use from many threads; none waits for another's read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: dict[str, RouterWeights] = {}  # the one asked for last stands last

    def load_router(self, version: str) -> RouterWeights:
        """The router's weights, to be left as they are. Raises NotFoundError."""
        with self._lock:
            weights = self._kept.pop(version, None)
            if weights is not None:
                self._kept[version] = weights
                return weights
        weights = self._read(version)
        with self._lock:
            self._kept[version] = weights
            while len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return weights

    def _read(self, version: str) -> RouterWeights:
        prefix = keys.router(checked_name("router", version))
        names = (CARD_FILE, WEIGHTS_FILE)
        return RouterWeights.from_files({name: self._store.get(prefix + name) for name in names})
