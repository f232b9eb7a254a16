"""The file that a router learns from: JSON lines of RouterExample."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ramole_core.errors import InvalidInputError
from ramole_core.training import RouterExample
from worker.train.records import bad_line, read_records


@dataclass(frozen=True)
class Line:
    """A checked line and its number, from 1."""

    number: int
    example: RouterExample


def read_lines(path: Path, known: Collection[str], chosen: Collection[str]) -> list[Line]:
    """The lines of the adapters `chosen` (none: of all); all must name `known` adapters.

    Raises InvalidInputError: the first bad line, a file that cannot be read, a chosen adapter that
    is not known or has no line.
    """
    for name in chosen:
        if name not in known:
            raise InvalidInputError(f"--adapters: {_no_adapter(name)}")
    lines = []
    for number, example in read_records(path, RouterExample):
        if example.adapter not in known:
            raise bad_line(number, _no_adapter(example.adapter))
        if not chosen or example.adapter in chosen:
            lines.append(Line(number, example))
    named = {line.example.adapter for line in lines}
    for name in chosen:
        if name not in named:
            raise InvalidInputError(f"--adapters: {path} has no example of {name!r}")
    return lines


def _no_adapter(name: str) -> str:
    return f"no adapter {name!r}; `ramole adapters list` shows what there is"
