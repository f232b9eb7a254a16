"""What the first worker of a store decides for all: the base model."""

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.errors import ConfigError
from ramole_core.store import ObjectStore


def announce_base(store: ObjectStore, base: BaseInfo) -> None:
    """Writes base.json, or checks that this worker's model is the one it names.

    Raises ConfigError when the store belongs to another base model.
    """
    if store.create(keys.BASE, base.model_dump_json().encode()):
        return
    known = BaseInfo.model_validate_json(store.get(keys.BASE))
    if known.fingerprint != base.fingerprint:
        raise ConfigError(
            f"this store belongs to the base model {known.name!r} and RAMOLE_MODEL is "
            f"{base.name!r} or has other shapes: use that model, or another RAMOLE_STORE_URL"
        )
    if known.aliases != base.aliases:
        store.put(keys.BASE, base.model_dump_json().encode())
