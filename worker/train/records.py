"""JSON lines of one record type, every line checked.

A line that is not acceptable ends the reading with its number: training on a part of what was meant
would be found out only by its answers. Blank lines are skipped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from ramole_core.adapters.strict_json import parse_strict
from ramole_core.errors import InvalidInputError
from ramole_core.jobs import MAX_PROMPT_BYTES, Wire

MAX_LINE_BYTES: Final = 24 * MAX_PROMPT_BYTES  # of several long texts, escaped
_BOM: Final = b"\xef\xbb\xbf"
Record = TypeVar("Record", bound=Wire)


def read_records(path: Path, kind: type[Record]) -> Iterator[tuple[int, Record]]:
    """(number from 1, record) of each line. Raises InvalidInputError: the first bad line, a file
    that cannot be read."""
    for number, data in _numbered(path):
        yield number, _checked(number, data, kind)


def bad_line(number: int, why: str) -> InvalidInputError:
    """The error of a line, the same wherever it is found."""
    return InvalidInputError(f"--data: line {number}: {why}")


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                data = data.removeprefix(_BOM) if number == 1 else data
                if data.strip():
                    yield number, data
    except OSError as e:
        raise InvalidInputError(f"--data {path}: {e.strerror or e}") from e


def _checked(number: int, data: bytes, kind: type[Record]) -> Record:
    if len(data) > MAX_LINE_BYTES:
        raise bad_line(number, f"longer than {MAX_LINE_BYTES} bytes")
    try:
        return kind.model_validate(parse_strict(data))
    except ValidationError as e:
        raise bad_line(number, _reason(e)) from e
    except json.JSONDecodeError as e:
        raise bad_line(number, f"not JSON: {e.msg}, column {e.colno}") from e
    except ValueError as e:
        raise bad_line(number, f"not JSON: {e}") from e


def _reason(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else "a JSON object is needed"
