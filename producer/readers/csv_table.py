"""CSV with a header line; read are the prompt and the id column, other columns are somebody's own.

Quoting is checked strictly: a stray quote is one bad line, never two prompts glued together.
"""

import csv
from collections.abc import Iterator
from typing import BinaryIO, Final

from producer.readers.lines import MAX_LINE_BYTES, TOO_LONG, bounded_lines
from producer.readers.record import RecordReader
from ramole_core.errors import InvalidInputError, printable
from ramole_core.jobs import PromptRequest

# Wrong quoting in any state of the parser: it reports an error there and starts afresh.
_BROKEN_ROW: Final = '"x"x"\n'


def read_csv(file: BinaryIO, records: RecordReader, name: str) -> Iterator[PromptRequest]:
    """The requests of all rows below the header. Raises InvalidInputError for the header, and
    for a row without end."""
    csv.field_size_limit(MAX_LINE_BYTES)  # below, the row is measured
    table = _Table(file, name)
    header = _header(table, name)
    if header is None:
        return
    columns = _columns(header, records, name)
    for index, (number, row) in enumerate(table.rows()):
        if isinstance(row, str):
            yield records.bad(index, number, row)
        elif len(row) > len(header):
            reason = f"{len(row)} fields under a header of {len(header)}; quote a field with commas"
            yield records.bad(index, number, reason)
        else:
            yield _request(records, index, number, row, columns)


class _Table:
    """Rows with the number of their first line; a reason in place of a row that is broken."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        self._too_long = False
        self._row_bytes = 0  # a quoted row may have many lines; all count
        self._reader = csv.reader(self._text(file), strict=True)

    def rows(self) -> Iterator[tuple[int, list[str] | str]]:
        while True:
            number, self._row_bytes = self._reader.line_num + 1, 0
            try:
                row: list[str] | str = next(self._reader)
            except StopIteration:
                return
            except csv.Error as e:
                row = TOO_LONG if self._too_long else f"not CSV: {e}"
                self._too_long = False
            if row:
                yield number, row

    def _text(self, file: BinaryIO) -> Iterator[str]:
        for number, line in bounded_lines(file):
            self._too_long = line is None
            self._row_bytes += len(line or b"")
            if self._row_bytes > MAX_LINE_BYTES:  # where the next row begins, nobody can say
                raise InvalidInputError(
                    f"{self._name}: line {number}: a row of more than {MAX_LINE_BYTES} bytes ends "
                    "here; is a quote left open?"
                )
            yield _BROKEN_ROW if line is None else line.decode(errors="surrogateescape")


def _header(table: _Table, name: str) -> list[str] | None:
    number, header = next(table.rows(), (0, None))
    if isinstance(header, str):
        raise InvalidInputError(f"{name}: line {number}: the header is {header}")
    return header


def _columns(header: list[str], records: RecordReader, name: str) -> dict[str, int]:
    if records.prompt_field not in header:
        shown = printable(", ".join(header)[:200])[:200]
        raise InvalidInputError(
            f"{name}: no column {records.prompt_field!r} in the header ({shown}); "
            "name the right one with --prompt-field"
        )
    fields = (records.prompt_field, records.id_field)
    return {field: header.index(field) for field in fields if field in header}


def _request(
    records: RecordReader, index: int, number: int, row: list[str], columns: dict[str, int]
) -> PromptRequest:
    record = {field: row[i] or None for field, i in columns.items() if i < len(row)}
    for field, value in record.items():
        if value is not None and not value.isascii() and not _is_text(value):
            return records.bad(index, number, f"column {field!r} is not UTF-8")
    return records.request(index, number, record)


def _is_text(value: str) -> bool:
    """False when undecodable bytes were carried along as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
