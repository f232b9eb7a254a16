"""Where a worker's encoders come from: the store, or RAMOLE_ENCODER for the version it gives."""

from pathlib import Path

from ramole_core.activations import Activations
from ramole_core.errors import ConfigError, InvalidInputError, NotFoundError
from ramole_core.retrieval.encoder import Encoder
from ramole_core.retrieval.encoder_store import fetch_encoder
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore


class EncoderSource:
    """Loads encoders by version. Not thread-safe."""

    def __init__(self, store: ObjectStore, settings: Settings) -> None:
        self._store = store
        self._name = settings.encoder
        self._prefix = settings.encoder_prefix
        self._cache: Path = settings.home / "cache" / "encoders"
        self._own_version = ""  # known once it was loaded

    def load(self, version: str) -> Encoder:
        """A stored version, or RAMOLE_ENCODER's own.

        Raises NotFoundError when it is neither, InvalidInputError when it cannot be loaded,
        UnavailableError on an outage.
        """
        try:
            return fetch_encoder(self._store, version, self._cache)
        except NotFoundError:
            if self._own_version in ("", version) and (own := self.load_own()).version == version:
                return own
        raise NotFoundError(
            f"it is not in the store, and RAMOLE_ENCODER (with its prefix) gives "
            f"{self._own_version!r}"
        )

    def load_own(self) -> Encoder:
        """What RAMOLE_ENCODER names. Raises ConfigError."""
        encoder = Encoder.load(self._name, self._prefix)
        self._own_version = encoder.version
        return encoder


def load_encoder_in_use(activations: Activations, source: EncoderSource) -> Encoder:
    """The encoder in use; in a fresh store that is RAMOLE_ENCODER's own from now on.

    Raises ConfigError when this worker cannot load it.
    """
    version = activations.active().encoder
    if not version:
        own = source.load_own()
        version = activations.start(own.version).encoder
        if version == own.version:
            return own
    try:
        return source.load(version)
    except NotFoundError as e:
        raise ConfigError(
            f"this store's encoder is {version!r}; {e}: "
            "use the same RAMOLE_ENCODER, or another RAMOLE_STORE_URL"
        ) from e
    except InvalidInputError as e:
        raise ConfigError(
            f"the encoder in use, {version!r}, cannot be loaded: {e}; "
            "`ramole encoders rollback` goes back to the one before"
        ) from e
