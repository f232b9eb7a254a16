"""Names that an upload brings: of its files and of the adapter. Refused: AdapterRefusedError."""

from typing import Final

from ramole_core.adapters.config import CONFIG_FILE
from ramole_core.errors import AdapterRefusedError, InvalidInputError
from ramole_core.jobs import checked_name

WEIGHTS_FILE: Final = "adapter_model.safetensors"
FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
_PICKLE_SUFFIXES: Final = (
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz",
)  # fmt: skip


def check_file_name(name: str) -> bool:
    """True for the files that matter, False for harmless others. Raises for pickles."""
    if name.lower().endswith(_PICKLE_SUFFIXES):
        raise AdapterRefusedError(
            "pickle_file",
            f"{name[:120]!r}: pickle files may run code; keep only {' and '.join(FILES)}",
        )
    return name in FILES


def checked_adapter_name(name: str) -> str:
    """Returns `name` when an adapter may have it."""
    try:
        return checked_name("adapter", name)
    except InvalidInputError as e:
        raise AdapterRefusedError("bad_name", str(e)) from e
