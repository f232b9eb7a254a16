"""Router versions, read from the store."""

from ramole_core import keys
from ramole_core.jobs import checked_name
from ramole_core.mole.router import CARD_FILE, WEIGHTS_FILE, RouterWeights
from ramole_core.store import ObjectStore


class StoredRouters:
    """The engine's RouterSource over `routers/<version>/`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def load_router(self, version: str) -> RouterWeights:
        """The router's weights. Raises NotFoundError."""
        prefix = keys.router(checked_name("router", version))
        names = (CARD_FILE, WEIGHTS_FILE)
        return RouterWeights.from_files({name: self._store.get(prefix + name) for name in names})
