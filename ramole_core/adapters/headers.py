"""The header of a safetensors file, parsed strictly and without torch.

Format: 8 bytes little-endian length N, N bytes of JSON, then the buffer. Accepted is only a file
whose tensors cover the buffer exactly, one after another, in the number formats LoRA files use.
Whatever the bytes are, the only error raised is AdapterRefusedError.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ramole_core.adapters.strict_json import DuplicateKeyError, parse_strict
from ramole_core.errors import AdapterRefusedError

MAX_HEADER_BYTES: Final = 4 << 20  # 560 linears take some 150 KB
ITEM_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
_PICKLES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Placed:
    info: TensorInfo
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name -> dtype and shape of every tensor of the file. Raises AdapterRefusedError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            num_bytes = _length(head, size)
            header = file.read(num_bytes)
    except OSError as e:
        raise AdapterRefusedError("unreadable", f"{path.name}: {e.strerror or e}") from e
    return parse_header(header, size - 8 - num_bytes)


def parse_header(header: bytes, buffer_bytes: int) -> dict[str, TensorInfo]:
    """The tensors that JSON `header` places in a buffer. Raises AdapterRefusedError."""
    if not header.startswith(b"{"):
        raise AdapterRefusedError("bad_header", "the safetensors header is not a JSON object")
    try:
        table = parse_strict(header)
    except DuplicateKeyError as e:
        raise AdapterRefusedError("duplicate_key", f"the safetensors header: {e}") from e
    except ValueError as e:
        raise AdapterRefusedError("bad_header", f"the safetensors header is not JSON: {e}") from e
    _check_metadata(table.pop("__metadata__", {}))
    placed = {name: _placed(name, entry) for name, entry in table.items()}
    _check_cover(placed, buffer_bytes)
    return {name: tensor.info for name, tensor in placed.items()}


def _length(head: bytes, file_bytes: int) -> int:
    num_bytes = int.from_bytes(head, "little")
    if len(head) == 8 and 2 <= num_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
        return num_bytes
    if head.startswith(_PICKLES):
        raise AdapterRefusedError(
            "pickle_file", "the weights are a pickle under another name: save them as safetensors"
        )
    raise AdapterRefusedError(
        "bad_header",
        f"the file of {file_bytes} bytes announces a header of {num_bytes} bytes "
        f"(limit {MAX_HEADER_BYTES}): not a safetensors file, or cut",
    )


def _check_metadata(metadata: Any) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise AdapterRefusedError("bad_header", "__metadata__ must map texts to texts")


def _placed(name: str, entry: Any) -> _Placed:
    shown = repr(name[:120])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise AdapterRefusedError(
            "bad_header", f"tensor {shown}: needs exactly dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise AdapterRefusedError(
            "bad_dtype", f"tensor {shown}: dtype {str(dtype)[:40]!r}, use {', '.join(ITEM_BYTES)}"
        )
    if not _sizes(shape) or len(shape) > 8:
        raise AdapterRefusedError("bad_shape", f"tensor {shown}: shape is not a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise AdapterRefusedError("bad_offsets", f"tensor {shown}: bad data_offsets")
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != wanted:
        raise AdapterRefusedError(
            "bad_offsets",
            f"tensor {shown}: {offsets[1] - offsets[0]} bytes for {dtype} {shape}, not {wanted}",
        )
    return _Placed(TensorInfo(dtype, tuple(shape)), offsets[0], offsets[1])


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)


def _check_cover(placed: dict[str, _Placed], buffer_bytes: int) -> None:
    position = 0
    for name, tensor in sorted(placed.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise AdapterRefusedError(
                "bad_offsets",
                f"tensor {name[:120]!r} begins at byte {tensor.begin}, not {position}: "
                "tensors must follow one another without gap or overlap",
            )
        position = tensor.end
    if position != buffer_bytes:
        raise AdapterRefusedError(
            "bad_offsets", f"the tensors cover {position} of the buffer's {buffer_bytes} bytes"
        )
