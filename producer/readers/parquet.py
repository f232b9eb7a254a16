"""Parquet: the prompt (or messages) and the id column, read in small batches of rows."""

from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from producer.readers.record import RecordReader
from ramole_core.errors import InvalidInputError, printable
from ramole_core.jobs import PromptRequest

BATCH_ROWS: Final = 1024
_NO_PYTHON_VALUE: Final = (ValueError, OverflowError)  # text that is not UTF-8, the year 99999


def read_parquet(file: BinaryIO, records: RecordReader, name: str) -> Iterator[PromptRequest]:
    """The requests of all rows. `file` must be seekable. Raises InvalidInputError for the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        columns = _columns(table.schema_arrow.names, records, name)
        index = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for record in _records(batch):
                yield _request(records, index, record)
                index += 1
    except (pa.ArrowException, OSError, ValueError) as e:
        reason = printable(str(e)[:200])[:200]
        raise InvalidInputError(f"{name}: not a readable Parquet file: {reason}") from e


def _columns(names: list[str], records: RecordReader, name: str) -> list[str]:
    wanted = [records.prompt_field, records.id_field]
    if records.prompt_field == "prompt":
        wanted.append("messages")
    columns = [field for field in wanted if field in names]
    if not set(columns) - {records.id_field}:
        raise InvalidInputError(
            f"{name}: no column {records.prompt_field!r} among "
            f"{printable(', '.join(names)[:200])[:200]}; "
            "name the right one with --prompt-field"
        )
    return columns


def _records(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows as dicts; a reason in place of a row that holds what Python cannot."""
    try:
        yield from batch.to_pylist()
    except _NO_PYTHON_VALUE:
        for row in range(batch.num_rows):
            try:
                values = [column[row].as_py() for column in batch.columns]
                yield dict(zip(batch.schema.names, values, strict=True))
            except UnicodeDecodeError as e:
                yield f"not UTF-8 at byte {e.start + 1}"
            except _NO_PYTHON_VALUE as e:
                yield f"not readable: {e}"


def _request(records: RecordReader, index: int, record: dict[str, Any] | str) -> PromptRequest:
    if isinstance(record, str):
        return records.bad(index, index + 1, record)
    return records.request(index, index + 1, record)
