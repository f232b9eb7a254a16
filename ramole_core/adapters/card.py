"""`card.json`: what is known of one accepted version. Written last into its folder.

Also the two hashes everything here compares: of one file, and of an adapter's whole content.
"""

import hashlib
from pathlib import Path
from typing import Final

from pydantic import Field

from ramole_core import keys
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.strict_json import parse_strict
from ramole_core.jobs import Name, Wire
from ramole_core.store.base import ObjectStore, to_json

CARD_FILE: Final = "card.json"
_BLOCK_BYTES: Final = 1 << 20


class FileInfo(Wire):
    """One file of an upload or of a version."""

    size: int = Field(ge=0)
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileInfo":
        """Reads the file through once."""
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
        return cls(size=size, sha256=digest.hexdigest())

    @classmethod
    def of_bytes(cls, data: bytes) -> "FileInfo":
        """Of a file that would hold `data`."""
        return cls(size=len(data), sha256=hashlib.sha256(data).hexdigest())


class Card(Wire):
    """One immutable adapter version."""

    name: Name
    version: int = Field(ge=1)
    owner: str
    created_at: str  # when it was uploaded
    upload_id: str
    sha256: str  # of the content, see content_hash
    base: str  # fingerprint of the base model it was checked against
    targets: tuple[str, ...] = Field(strict=False)  # last parts of the linears, e.g. q_proj
    ranks: dict[str, int]  # linear -> R
    dtype: str  # of the weights file: F32, F16, BF16 or mixed
    num_samples: int
    size_bytes: int  # of the weights file
    files: dict[str, FileInfo]
    warnings: tuple[str, ...] = Field(default=(), strict=False)

    @property
    def ref(self) -> AdapterRef:
        """Its name and version."""
        return AdapterRef(self.name, self.version)


def card_key(ref: AdapterRef) -> str:
    """Where the card of a version lies."""
    return keys.adapter(ref) + CARD_FILE


def read_card(store: ObjectStore, ref: AdapterRef) -> Card:
    """The card of a version. Raises NotFoundError."""
    return Card.model_validate_json(store.get(card_key(ref)))


def content_hash(config: bytes, weights_sha256: str, samples: list[str]) -> str:
    """Equal for two uploads that say the same, however their JSON is laid out."""
    parts = [parse_strict(config), weights_sha256, samples]
    return hashlib.sha256(to_json(parts)).hexdigest()
