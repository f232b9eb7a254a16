"""What the first worker of a store decides for all: the base model and the encoder in use."""

import json
import logging

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.errors import ConfigError, NotFoundError
from ramole_core.store import ObjectStore
from ramole_core.store.base import to_json

logger = logging.getLogger(__name__)


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


def announce_encoder(store: ObjectStore, version: str) -> None:
    """Writes active.json, or checks that this worker's encoder is the one it names.

    Raises ConfigError when the adapters of this store were described by another encoder.
    """
    if store.create(keys.ACTIVE, to_json({"encoder": version, "router": None})):
        return
    try:
        known = json.loads(store.get(keys.ACTIVE))["encoder"]
    except (NotFoundError, ValueError, KeyError) as e:
        raise ConfigError(f"{keys.ACTIVE} in the store is not readable: {e}") from e
    if known != version:
        raise ConfigError(
            f"this store's encoder is {known!r} and RAMOLE_ENCODER (with its prefix) gives "
            f"{version!r}: use the same encoder, or another RAMOLE_STORE_URL"
        )
