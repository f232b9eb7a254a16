"""Plain text: every line that is not blank is one prompt."""

from collections.abc import Iterator
from typing import BinaryIO

from producer.readers.lines import TOO_LONG, bounded_lines
from producer.readers.record import RecordReader
from ramole_core.jobs import PromptRequest


def read_text(file: BinaryIO, records: RecordReader) -> Iterator[PromptRequest]:
    """The requests of all lines that are not blank."""
    index = 0
    for number, line in bounded_lines(file):
        if line is None:
            yield records.bad(index, number, TOO_LONG)
        elif line.isspace() or not line:
            continue
        else:
            try:
                prompt = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as e:
                yield records.bad(index, number, f"not UTF-8 at byte {e.start + 1}")
            else:
                yield records.request(index, number, {records.prompt_field: prompt})
        index += 1
