"""`ramole results`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from producer.commands.common import App, echo_table, json_option
from ramole_core.errors import InvalidInputError
from ramole_core.jobs import PromptResult

MAX_CELL_CHARS = 60


@click.command()
@click.argument("job")
@click.option("--output", type=click.Path(path_type=Path), help="Write here instead of stdout.")
@click.option("--format", type=click.Choice(["jsonl", "table"]), default="jsonl")
@click.option("--partial", is_flag=True, help="Also of a job that runs: what is finished so far.")
@json_option
@click.pass_obj
def results(
    app: App, job: str, output: Path | None, format: str, partial: bool, as_json: bool
) -> None:
    """Prints the results of JOB, one JSON line per prompt, in the order of the prompts.

    \b
    Example: ramole results 20260131-060000-123-9f2c4e --output answers.jsonl
    """
    if output is not None and format == "table":
        raise click.UsageError("--output takes JSON lines; without it the table goes to stdout")
    _check_output(output)
    lines = app.client.result_lines(job, partial)
    if format == "table" and not as_json:
        return _echo_results(map(PromptResult.model_validate_json, lines))
    with _opened(output) as file:
        for line in lines:
            file.write(line + b"\n")
    return None


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if not output.parent.is_dir():
        raise InvalidInputError(f"--output {output}: there is no folder {output.parent}")
    if output.exists() and not output.is_file():
        raise InvalidInputError(f"--output {output}: is not a file")


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Stdout, or the file, which appears when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = output.with_name(output.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, output)
    except OSError as e:
        raise InvalidInputError(f"--output {output}: {e.strerror or e}") from e
    finally:
        part.unlink(missing_ok=True)


def _echo_results(found: Iterator[PromptResult]) -> None:
    rows = [
        (
            result.index,
            result.id or "",
            " ".join(f"{use.name}={use.weight:.2f}" for use in result.adapters),
            _cell(result.error.message if result.error else result.text or ""),
        )
        for result in found
    ]
    echo_table(("INDEX", "ID", "ADAPTERS", "ANSWER"), rows)


def _cell(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CELL_CHARS else line[: MAX_CELL_CHARS - 1] + "…"
