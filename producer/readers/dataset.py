"""Where a dataset lies and in which format: a path, `-`, `store:KEY`, or Python items."""

import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO, Final, cast

from pydantic_core import PydanticSerializationError

from producer.readers.csv_table import read_csv
from producer.readers.jsonl import read_jsonl
from producer.readers.parquet import read_parquet
from producer.readers.record import RecordReader
from producer.readers.text import read_text
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.jobs import PromptRequest
from ramole_core.store import ObjectStore

FORMATS: Final = ("jsonl", "csv", "parquet", "text")
STORE_PREFIX: Final = "store:"
_SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
}


@dataclass(frozen=True)
class Dataset:
    """A dataset to read: `location` is a path, `-` (standard input) or `store:KEY`."""

    location: str
    format: str | None = None
    prompt_field: str | None = None
    id_field: str | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return "standard input" if self.location == "-" else self.location

    def chosen_format(self) -> str:
        """The format given, else that of the suffix (standard input: jsonl)."""
        if self.format is not None:
            if self.format not in FORMATS:
                raise InvalidInputError(f"format {self.format!r}: one of {', '.join(FORMATS)}")
            return self.format
        if self.location == "-":
            return "jsonl"
        suffix = Path(self.location).suffix.lower()
        if suffix not in _SUFFIXES:
            raise InvalidInputError(
                f"{self.name}: the suffix {suffix!r} names no format; "
                f"add --format {'|'.join(FORMATS)}"
            )
        return _SUFFIXES[suffix]


def read_dataset(dataset: Dataset, store: ObjectStore) -> Iterator[PromptRequest]:
    """The dataset's prompts as a stream. Raises NotFoundError, InvalidInputError."""
    chosen = dataset.chosen_format()
    unit = "row" if chosen == "parquet" else "line"
    records = RecordReader(dataset.prompt_field, dataset.id_field, unit)
    with _opened(dataset, store, seekable=chosen == "parquet") as file:
        if chosen == "jsonl":
            yield from read_jsonl(file, records)
        elif chosen == "csv":
            yield from read_csv(file, records, dataset.name)
        elif chosen == "parquet":
            yield from read_parquet(file, records, dataset.name)
        else:
            yield from read_text(file, records)


def read_items(items: Iterable[str | Mapping[str, Any]]) -> Iterator[PromptRequest]:
    """The prompts of Python items: text, or mappings with the keys of a JSONL line."""
    records = RecordReader(unit="item")
    for index, item in enumerate(items):
        record = {"prompt": item} if isinstance(item, str) else item
        request = records.request(index, index + 1, record)
        try:
            request.model_dump_json()
        except PydanticSerializationError:  # Python text may hold what UTF-8 cannot
            request = records.bad(index, index + 1, "a text with a lone surrogate")
        yield request


@contextmanager
def _opened(dataset: Dataset, store: ObjectStore, seekable: bool) -> Iterator[BinaryIO]:
    if dataset.location == "-":
        with _standard_input(seekable) as file:
            yield file
    elif dataset.location.startswith(STORE_PREFIX):
        with _downloaded(store, dataset.location.removeprefix(STORE_PREFIX)) as file:
            yield file
    else:
        with _local(dataset.location) as file:
            yield file


def _local(location: str) -> BinaryIO:
    try:
        return open(location, "rb", buffering=1 << 20)
    except FileNotFoundError as e:
        raise NotFoundError(f"{location}: no such file") from e
    except (OSError, ValueError) as e:
        raise InvalidInputError(f"{location}: cannot be read: {e}") from e


@contextmanager
def _standard_input(seekable: bool) -> Iterator[BinaryIO]:
    if not seekable:
        yield sys.stdin.buffer
        return
    with tempfile.TemporaryFile() as file:
        copyfileobj(sys.stdin.buffer, file)
        file.seek(0)
        yield cast(BinaryIO, file)


@contextmanager
def _downloaded(store: ObjectStore, key: str) -> Iterator[BinaryIO]:
    with tempfile.TemporaryDirectory(prefix="ramole-") as folder:
        path = Path(folder) / "dataset"
        store.download(key, path)
        with path.open("rb") as file:
            yield file
