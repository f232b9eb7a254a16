"""Trained encoder versions: into the store, and from it onto this machine's disk.

In the store the files come first and the card last, so a cut leaves no version. On disk a version
is downloaded into a temporary folder, checked against the card's hashes and renamed into place; it
is checked again whenever it is loaded. Versions are immutable. What may lie in one: card.py.
"""

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.adapters.card import FileInfo
from ramole_core.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from ramole_core.retrieval.card import (
    MAX_FILES,
    EncoderCard,
    checked_model_file,
    read_encoder_card,
)
from ramole_core.retrieval.encoder import Encoder
from ramole_core.retrieval.model_files import check_model_folder
from ramole_core.store.base import ObjectStore

_TMP: Final = ".tmp"


def store_encoder(
    store: ObjectStore,
    folder: Path,
    card: EncoderCard,
    before_card: Callable[[], None] = lambda: None,
) -> EncoderCard:
    """Stores the model that lies in `folder`; returns its card with the hashes of the files.

    Storing the same again changes nothing. Raises InvalidInputError for files that a model may not
    have, ConflictError when the version exists with other content.
    """
    hashes = _hashes(folder)
    check_model_folder(folder, f"encoder {card.version}")
    try:
        card = EncoderCard.model_validate(card.model_dump() | {"files": hashes})
    except ValidationError as e:
        raise InvalidInputError(f"encoder {card.version}: {e.errors()[0]['msg']}") from e
    with suppress(NotFoundError):
        return _equal(read_encoder_card(store, card.version), card)
    for name in card.files:
        store.upload(folder / name, keys.encoder_files(card.version) + name)
    before_card()
    if store.create(keys.encoder_card(card.version), card.model_dump_json(indent=2).encode()):
        return card
    return _equal(read_encoder_card(store, card.version), card)


def fetch_encoder(store: ObjectStore, version: str, cache: Path) -> Encoder:
    """Loads a stored version, downloaded into `cache`/`version` when it is not there yet.

    Raises NotFoundError when there is no such version, InvalidInputError when it is damaged or
    cannot be loaded, UnavailableError on an outage.
    """
    card = read_encoder_card(store, version)
    folder = cache / version
    if not _is_whole(folder, card):
        try:
            _download(store, card, cache)
        except OSError as e:
            raise UnavailableError(f"cache {cache}: {e.strerror or e}") from e
    return Encoder.open(folder, card)


def _download(store: ObjectStore, card: EncoderCard, cache: Path) -> None:
    """Places the files as `cache`/`version`."""
    temporary, grave = (cache / _TMP / secrets.token_hex(8) for _ in range(2))
    folder = cache / card.version
    try:
        for name in card.files:
            path = temporary / checked_model_file(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            store.download(keys.encoder_files(card.version) + name, path)
        if not _is_whole(temporary, card):
            raise InvalidInputError(f"encoder {card.version}: its files differ from its card")
        check_model_folder(temporary, f"encoder {card.version}")
        if not _is_whole(folder, card):  # no other process was first
            with suppress(OSError):
                os.rename(folder, grave)
            with suppress(OSError):
                os.rename(temporary, folder)
    except NotFoundError as e:
        raise InvalidInputError(f"encoder {card.version}: {e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(grave, ignore_errors=True)


def _is_whole(folder: Path, card: EncoderCard) -> bool:
    """True when the folder holds what the card says and nothing else."""
    try:
        return _hashes(folder) == card.files != {}
    except (InvalidInputError, OSError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """Path below `folder` -> SHA-256 of every file. Raises InvalidInputError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if len(paths) > MAX_FILES:
        raise InvalidInputError(f"encoder {folder}: {len(paths)} files, at most {MAX_FILES}")
    hashes = {}
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise InvalidInputError(f"encoder {folder}: {path.name} is not a regular file")
        name = checked_model_file(path.relative_to(folder).as_posix())
        hashes[name] = FileInfo.of(path).sha256
    return hashes


def _equal(stored: EncoderCard, card: EncoderCard) -> EncoderCard:
    if stored.files != card.files:
        raise ConflictError(f"encoder {card.version} exists already with other content")
    return stored
