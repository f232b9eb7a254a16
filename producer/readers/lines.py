"""Lines of a binary file, numbered from 1, none of them ever longer than a limit in memory."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO, Final

from ramole_core.jobs import MAX_PROMPT_BYTES

# A prompt of the greatest size still fits when JSON writes each of its bytes as \\u00XX.
MAX_LINE_BYTES: Final = 6 * MAX_PROMPT_BYTES + (1 << 20)
TOO_LONG: Final = f"the line is longer than {MAX_LINE_BYTES} bytes"
_SKIP_BYTES: Final = 1 << 16


def bounded_lines(
    file: BinaryIO, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line with its end), or None for a line over `max_bytes`, which is skipped.

    A byte order mark at the start of the file is dropped.
    """
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > max_bytes and not line.endswith(b"\n"):
            _skip_to_newline(file)
            yield number, None
        else:
            yield number, line


def _skip_to_newline(file: BinaryIO) -> None:
    while part := file.readline(_SKIP_BYTES):
        if part.endswith(b"\n"):
            return
