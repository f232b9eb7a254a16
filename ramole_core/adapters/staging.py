"""An upload on its way: copied into `staging/<upload_id>/` by a producer, read by a worker.

`upload.json` is written last; without it there is no upload. Nothing here looks at the content:
the gate does, on both sides.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from ramole_core import keys
from ramole_core.adapters.card import FileInfo
from ramole_core.adapters.names import FILES, checked_adapter_name
from ramole_core.adapters.samples import SAMPLES_FILE, check_samples, encode_samples
from ramole_core.errors import AdapterRefusedError
from ramole_core.jobs import Wire, checked_name, new_job_id, utc_now
from ramole_core.store.base import ObjectStore

__all__ = ["UPLOAD_FILE", "Upload", "checked_adapter_name", "new_upload_id", "stage_upload"]

UPLOAD_FILE: Final = "upload.json"
MAX_UPLOAD_FILE_BYTES: Final = 1 << 20
MAX_OWNER_CHARS: Final = 200
_PRINTABLE: Final = r"^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]*$"  # terminals show it: no control characters


class Upload(Wire):
    """`upload.json`: who uploads what under which name."""

    name: str = Field(max_length=1000)
    owner: str = Field(min_length=1, max_length=MAX_OWNER_CHARS, pattern=_PRINTABLE)
    created_at: str = Field(max_length=100, pattern=_PRINTABLE)
    files: dict[str, FileInfo]


def new_upload_id(now: datetime.datetime) -> str:
    """A fresh id that sorts by time."""
    return new_job_id(now)


def stage_upload(
    store: ObjectStore, folder: Path, samples: Sequence[str], name: str, owner: str, upload_id: str
) -> None:
    """Copies the adapter in `folder` and its samples into the store. Repeating it is harmless.

    Raises AdapterRefusedError (name, owner, samples, missing file) before anything is written.
    """
    checked_name("upload", upload_id)
    checked_adapter_name(name)
    encoded = encode_samples(check_samples(samples))
    try:
        files = {file: FileInfo.of(folder / file) for file in FILES}
    except OSError as e:
        raise AdapterRefusedError("missing_file", f"{e.filename}: {e.strerror or e}") from e
    files[SAMPLES_FILE] = FileInfo.of_bytes(encoded)
    upload = _record(name, owner, files)
    prefix = keys.staging(upload_id)
    for file in FILES:
        store.upload(folder / file, prefix + file)
    store.put(prefix + SAMPLES_FILE, encoded)
    store.put(prefix + UPLOAD_FILE, upload.model_dump_json().encode())


def _record(name: str, owner: str, files: dict[str, FileInfo]) -> Upload:
    try:
        return Upload(name=name, owner=owner, created_at=utc_now().isoformat(), files=files)
    except ValidationError as e:
        raise AdapterRefusedError(
            "bad_upload",
            f"owner {owner[:80]!a}: use 1 to {MAX_OWNER_CHARS} characters, none of them control",
        ) from e
