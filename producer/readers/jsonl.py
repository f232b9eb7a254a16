"""JSON lines: one object with `prompt` or `messages` per line, or OpenAI-batch lines."""

from collections.abc import Iterator
from typing import BinaryIO

from pydantic_core import from_json

from producer.readers.lines import TOO_LONG, bounded_lines
from producer.readers.record import RecordReader
from ramole_core.jobs import PromptRequest


def read_jsonl(file: BinaryIO, records: RecordReader) -> Iterator[PromptRequest]:
    """The requests of all lines that are not blank."""
    index = 0
    for number, line in bounded_lines(file):
        if line is None:
            yield records.bad(index, number, TOO_LONG)
        elif line.isspace() or not line:
            continue
        else:
            try:
                record = from_json(line, allow_inf_nan=False)
            except ValueError as e:
                yield records.bad(index, number, _reason(line, e))
            else:
                yield records.request(index, number, record)
        index += 1


def _reason(line: bytes, error: ValueError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as e:
        return f"not UTF-8 at byte {e.start + 1}"
    what, _, column = str(error).rpartition(" at line ")  # of this one line, or behind its end
    at = f", column {column.rpartition(' ')[2]}" if column.startswith("1 ") else ""
    return f"not JSON: {what or column}{at}"
