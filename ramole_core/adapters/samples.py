"""The sample inputs that come with an adapter: what retrieval knows of it.

A file of JSON lines, each line one string that begins at its first byte. A bad line is refused with
its number (from 1).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ramole_core.adapters.strict_json import parse_strict
from ramole_core.errors import AdapterRefusedError
from ramole_core.store.base import to_json

SAMPLES_FILE: Final = "samples.jsonl"
MAX_SAMPLES: Final = 1000
MAX_SAMPLE_CHARS: Final = 100_000
MAX_LINE_BYTES: Final = 12 * MAX_SAMPLE_CHARS + 2  # quoted; an emoji escaped takes 12
MAX_SAMPLES_BYTES: Final = 64 << 20


def check_samples(samples: Sequence[object]) -> list[str]:
    """Returns the samples when all are acceptable. Raises AdapterRefusedError."""
    if not 1 <= len(samples) <= MAX_SAMPLES:
        raise AdapterRefusedError(
            "num_samples", f"{len(samples)} samples: give 1 to {MAX_SAMPLES}, one per line"
        )
    return [_checked(number, sample) for number, sample in enumerate(samples, start=1)]


def parse_samples(data: bytes) -> list[str]:
    """The samples of a file's bytes. Raises AdapterRefusedError."""
    if len(data) > MAX_SAMPLES_BYTES:
        raise AdapterRefusedError("too_large", f"{SAMPLES_FILE}: over {MAX_SAMPLES_BYTES} bytes")
    data = data.removesuffix(b"\n")
    if (further := data.count(b"\n")) >= MAX_SAMPLES:  # counted first: lines apart take more room
        raise AdapterRefusedError("num_samples", f"{further + 1} samples: at most {MAX_SAMPLES}")
    lines = data.split(b"\n") if data else []
    return check_samples([_parsed(number, line) for number, line in enumerate(lines, start=1)])


def read_samples(path: Path) -> list[str]:
    """The samples of a file. Raises AdapterRefusedError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SAMPLES_BYTES + 1)  # whatever size the file claims to have
    except OSError as e:
        raise AdapterRefusedError("unreadable", f"{path}: {e.strerror or e}") from e
    return parse_samples(data)


def encode_samples(samples: Sequence[str]) -> bytes:
    """The file that holds `samples`."""
    return b"".join(to_json(sample) + b"\n" for sample in samples)


def _parsed(number: int, line: bytes) -> object:
    """What is no string is refused unparsed: as objects it would take many times its bytes."""
    if not line.startswith(b'"'):
        raise AdapterRefusedError("bad_sample", f"sample line {number}: not a JSON string")
    if len(line) > MAX_LINE_BYTES:
        raise AdapterRefusedError(
            "bad_sample", f"sample line {number}: {len(line)} bytes, at most {MAX_LINE_BYTES}"
        )
    try:
        return parse_strict(line)
    except ValueError as e:
        raise AdapterRefusedError("bad_sample", f"sample line {number}: {e}") from e


def _checked(number: int, sample: object) -> str:
    if not isinstance(sample, str):
        raise AdapterRefusedError("bad_sample", f"sample line {number}: not a JSON string")
    if not sample.strip():
        raise AdapterRefusedError("bad_sample", f"sample line {number}: empty")
    if len(sample) > MAX_SAMPLE_CHARS:
        raise AdapterRefusedError(
            "bad_sample",
            f"sample line {number}: {len(sample)} characters, at most {MAX_SAMPLE_CHARS}",
        )
    try:
        sample.encode()
    except UnicodeEncodeError as e:
        raise AdapterRefusedError("bad_sample", f"sample line {number}: a lone surrogate") from e
    return sample
