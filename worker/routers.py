"""Router versions, read from the store."""

import tempfile
from pathlib import Path

from ramole_core import keys
from ramole_core.jobs import checked_name
from ramole_core.mole.router import RouterWeights
from ramole_core.store import ObjectStore


class StoredRouters:
    """The engine's RouterSource over `routers/<version>/`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def load_router(self, version: str) -> RouterWeights:
        """The router's weights. Raises NotFoundError."""
        prefix = keys.router(checked_name("router", version))
        with tempfile.TemporaryDirectory() as folder:
            for name in ("router.json", "router.safetensors"):
                self._store.download(prefix + name, Path(folder) / name)
            return RouterWeights.load(Path(folder))
