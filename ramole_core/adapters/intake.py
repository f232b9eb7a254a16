"""From `staging/<upload_id>/` to this machine's disk, through every check. Needs torch to run.

Names and sizes are checked before anything large is fetched; nothing in the store is changed.
The errors are AdapterRefusedError, UnavailableError and, where this disk fails, OSError.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.card import FileInfo, content_hash
from ramole_core.adapters.config import CONFIG_FILE, MAX_CONFIG_BYTES
from ramole_core.adapters.gate import CheckedUpload, Limits, check_folder
from ramole_core.adapters.names import FILES, WEIGHTS_FILE, check_file_name, checked_adapter_name
from ramole_core.adapters.samples import MAX_SAMPLES_BYTES, SAMPLES_FILE, read_samples
from ramole_core.adapters.staging import MAX_UPLOAD_FILE_BYTES, UPLOAD_FILE, Upload
from ramole_core.errors import AdapterRefusedError, NotFoundError
from ramole_core.store.base import ObjectStore

STAGED: Final = (*FILES, SAMPLES_FILE)


@dataclass(frozen=True)
class Arrived:
    """An upload that passed the gate; its files lie in `folder` while the caller keeps it."""

    upload: Upload
    folder: Path
    found: CheckedUpload
    samples: list[str]
    sha256: str  # content_hash

    def path(self, name: str) -> Path:
        """Where one of the STAGED files lies."""
        return _local(self.folder, name)


def take_in(
    store: ObjectStore,
    upload_id: str,
    folder: Path,
    base: BaseInfo,
    limits: Limits,
    check_upload: Callable[[Upload], None],
) -> Arrived:
    """Downloads an upload into the empty `folder` and sends it through the gate.

    `check_upload` may refuse by `upload.json` alone, before anything is downloaded.
    """
    from ramole_core.adapters.loading import load_lora
    from ramole_core.adapters.values import check_values

    upload = _fetched(store, keys.staging(upload_id), folder, limits, check_upload)
    adapter = folder / "adapter"
    found = check_folder(adapter, base, limits)
    check_values(load_lora(adapter))
    samples = read_samples(folder / SAMPLES_FILE)
    weights_sha256 = upload.files[WEIGHTS_FILE].sha256
    sha256 = content_hash((adapter / CONFIG_FILE).read_bytes(), weights_sha256, samples)
    return Arrived(upload, folder, found, samples, sha256)


def _fetched(
    store: ObjectStore,
    prefix: str,
    folder: Path,
    limits: Limits,
    check_upload: Callable[[Upload], None],
) -> Upload:
    """The files as `upload.json` promises them."""
    sizes = {entry.key.removeprefix(prefix): entry.size_bytes for entry in store.entries(prefix)}
    try:
        upload = _read_upload(store, prefix, sizes)
        check_upload(upload)
        _check_staged(sizes, upload, limits)
        (folder / "adapter").mkdir()
        for name in STAGED:
            path = _local(folder, name)
            store.download(prefix + name, path)
            if FileInfo.of(path) != upload.files[name]:
                raise AdapterRefusedError("damaged", f"{name} is not what was sent: try again")
    except NotFoundError as e:
        raise AdapterRefusedError("missing_file", f"the upload is incomplete: {e}") from e
    return upload


def _read_upload(store: ObjectStore, prefix: str, sizes: Mapping[str, int]) -> Upload:
    if sizes.get(UPLOAD_FILE, 0) > MAX_UPLOAD_FILE_BYTES:
        raise AdapterRefusedError("bad_upload", f"{UPLOAD_FILE} is too large")
    try:
        upload = Upload.model_validate_json(store.get(prefix + UPLOAD_FILE))
    except ValidationError as e:
        raise AdapterRefusedError("bad_upload", f"{UPLOAD_FILE} is not readable") from e
    checked_adapter_name(upload.name)
    return upload


def _check_staged(sizes: Mapping[str, int], upload: Upload, limits: Limits) -> None:
    """Names and sizes of what lies there, and of what `upload.json` says lies there."""
    for name in sorted({*sizes, *upload.files} - {UPLOAD_FILE}):
        check_file_name(name)  # refuses pickles; other files are not fetched
    most = {
        WEIGHTS_FILE: limits.max_adapter_bytes,
        CONFIG_FILE: MAX_CONFIG_BYTES,
        SAMPLES_FILE: MAX_SAMPLES_BYTES,
    }
    for name in STAGED:
        if name not in upload.files:
            raise AdapterRefusedError("missing_file", f"the upload has no {name}")
        if sizes.get(name, 0) > most[name]:
            raise AdapterRefusedError(
                "too_large", f"{name}: {sizes[name]} bytes are over the limit of {most[name]}"
            )


def _local(folder: Path, name: str) -> Path:
    """The adapter's two files lie apart, as a folder that the gate can judge."""
    return folder / "adapter" / name if name in FILES else folder / name
