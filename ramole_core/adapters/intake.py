"""From `staging/<upload_id>/` to this machine's disk, through every check. Needs torch to run.

Names are checked before anything large is fetched, and no file is fetched beyond its limit, even if
it grows meanwhile; nothing in the store is changed.
The errors are AdapterRefusedError, UnavailableError and, where this disk fails, OSError.
"""

from collections.abc import Callable, Iterable
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
from ramole_core.errors import AdapterRefusedError, NotFoundError, TooLargeError
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
    names = [entry.key.removeprefix(prefix) for entry in store.entries(prefix)]
    most = {
        WEIGHTS_FILE: limits.max_adapter_bytes,
        CONFIG_FILE: MAX_CONFIG_BYTES,
        SAMPLES_FILE: MAX_SAMPLES_BYTES,
    }
    try:
        upload = _read_upload(store, prefix, folder)
        check_upload(upload)
        _check_names(names, upload)
        (folder / "adapter").mkdir()
        for name in STAGED:
            path = _local(folder, name)
            store.download(prefix + name, path, most[name])
            if FileInfo.of(path) != upload.files[name]:
                raise AdapterRefusedError("damaged", f"{name} is not what was sent: try again")
    except NotFoundError as e:
        raise AdapterRefusedError("missing_file", f"the upload is incomplete: {e}") from e
    except TooLargeError as e:
        raise AdapterRefusedError("too_large", str(e)) from e
    return upload


def _read_upload(store: ObjectStore, prefix: str, folder: Path) -> Upload:
    path = _local(folder, UPLOAD_FILE)
    store.download(prefix + UPLOAD_FILE, path, MAX_UPLOAD_FILE_BYTES)
    try:
        upload = Upload.model_validate_json(path.read_bytes())
    except ValidationError as e:
        raise AdapterRefusedError("bad_upload", f"{UPLOAD_FILE} is not readable") from e
    checked_adapter_name(upload.name)
    return upload


def _check_names(names: Iterable[str], upload: Upload) -> None:
    """What lies there, and what `upload.json` says lies there."""
    for name in sorted({*names, *upload.files} - {UPLOAD_FILE}):
        check_file_name(name)  # refuses pickles; other files are not fetched
    for name in STAGED:
        if name not in upload.files:
            raise AdapterRefusedError("missing_file", f"the upload has no {name}")


def _local(folder: Path, name: str) -> Path:
    """The adapter's two files lie apart, as a folder that the gate can judge."""
    return folder / "adapter" / name if name in FILES else folder / name
