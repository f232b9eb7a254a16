"""What every object store promises.

Keys are relative, '/'-separated paths. An object appears whole or not at all. `create` is the one
atomic decision everything else rests on: of many writers of one key exactly one content wins.
Every method raises StoreUnavailableError when the store does not answer or refuses the
credentials, and its parent UnavailableError when the local side of a copy fails; nothing else of
the underlying library escapes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ramole_core.errors import InvalidInputError, TooLargeError, UnavailableError

MAX_KEY_BYTES: Final = 900


@dataclass(frozen=True)
class ObjectInfo:
    """One row of a listing."""

    key: str
    size_bytes: int
    modified_seconds: float  # Unix time by the store's clock


class ObjectStore(Protocol):
    """A flat map from keys to bytes."""

    def check(self) -> None:
        """Finds out within seconds whether the store is there at all."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFoundError."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces the object, atomically."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Writes the object unless it exists. True when it now holds `data`, False otherwise.

        A writer that meets its own or an equal earlier write gets True: creation is idempotent.
        Raises TooLargeError when `data` is over what the store can create atomically.
        """
        ...

    def exists(self, key: str) -> bool:
        """True when there is an object under `key`."""
        ...

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key begins with `prefix` (a folder: ends with '/'), sorted by key."""
        ...

    def children(self, prefix: str) -> list[str]:
        """The next path part below `prefix` (ends with '/') of every key there, sorted, unique."""
        ...

    def delete(self, key: str) -> None:
        """Removes the object; removing what is not there is no error."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Copies a local file into the store without holding it in memory."""
        ...

    def download(self, key: str, path: Path, max_bytes: int | None = None) -> None:
        """Copies an object to a local file, atomically (temporary name, then rename).

        Raises NotFoundError, and TooLargeError when the object has more than `max_bytes`: no more
        than these are ever written, whatever a listing said before.
        """
        ...


def too_large(key: str, max_bytes: int) -> TooLargeError:
    """What `download` raises."""
    name = key.rpartition("/")[2]
    return TooLargeError(f"{name}: over the limit of {max_bytes} bytes")


@contextmanager
def local_file(path: Path) -> Iterator[None]:
    """Errors of the local side of a copy: this machine's disk, not the store."""
    try:
        yield
    except OSError as e:
        raise UnavailableError(
            f"{path}: {e.strerror or e} (is the disk of RAMOLE_HOME full or gone?)"
        ) from e


def checked_key(key: str) -> str:
    """Returns `key` when it is a safe relative path. Raises InvalidInputError."""
    parts = key.split("/")
    bad = (
        not key
        or len(key.encode()) > MAX_KEY_BYTES
        or any(part in ("", ".", "..") or len(part.encode()) > 200 for part in parts)
        or any(ord(c) < 32 or c in '\\\x7f:*?"<>|' for c in key)
    )
    if bad:
        raise InvalidInputError(f"{key[:120]!r} is not an object key")
    return key


def get_json(store: ObjectStore, key: str) -> Any:
    """The object parsed as JSON. Raises NotFoundError."""
    return json.loads(store.get(key))


def to_json(value: Any) -> bytes:
    """Canonical JSON bytes: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
