"""What the commands share: the client they call, and how they print."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import BaseModel

from producer.client import Client
from producer.embedded.preconditions import worker_is_installed
from producer.job_status import JobStatus
from producer.progress import ProgressLine
from ramole_core.errors import ConfigError
from ramole_core.jobs import JobState
from ramole_core.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

EXIT_JOB_FAILED = 7
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


class App:
    """What the group hands to its commands; settings are read at first use."""

    def __init__(self, home: Path | None) -> None:
        self.home = home  # as given on the command line

    @cached_property
    def settings(self) -> Settings:
        """The settings of this process. Raises ConfigError."""
        return Settings.load(home=self.home)

    @cached_property
    def client(self) -> Client:
        """The client of this process."""
        return Client(self.settings)


def json_option(command: F) -> F:
    """Adds `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def echo_json(value: Any) -> None:
    """Prints one line of JSON on stdout."""
    if isinstance(value, BaseModel):
        click.echo(value.model_dump_json())
    else:
        click.echo(json.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """Prints something for people on stderr; stdout stays data."""
    click.echo(text, err=True)


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown_bytes(size: int) -> str:
    """`17 bytes`, `4.2 MB`."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else counted(size, "byte")


def echo_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints columns as wide as their longest cell."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def echo_status(status: JobStatus, as_json: bool) -> None:
    """Prints how far a job is."""
    if as_json:
        return echo_json(status)
    bad = f" ({counted(status.num_bad_lines, 'bad line')})" if status.num_bad_lines else ""
    rows = [
        ("job", status.job_id),
        ("state", status.state.value),
        ("prompts", f"{status.num_done} of {status.num_prompts} done"),
        ("failed", f"{status.num_failed}{bad}"),
        ("shards", f"{status.num_shards_done} of {status.num_shards} done"),
        ("created", status.created_at),
        ("finished", status.finished_at or "-"),
    ]
    if status.workers is not None:
        rows.append(("workers", str(status.workers) if status.workers else "none is running"))
    for name, value in rows:
        click.echo(f"{name:<9}{value}")
    return None


def warn_unknown(app: App, excluded: Iterable[str]) -> None:
    """Notes names that no adapter ever had: nothing is excluded by them."""
    known = {row.name for row in app.client.adapters(with_removed=True)} if excluded else set()
    for name in excluded:
        if name not in known:
            note(f"warning: --exclude-adapter {name}: no adapter has that name")


def wait_and_report(app: App, job_id: str, timeout_seconds: float | None, as_json: bool) -> None:
    """Waits for a job, prints how it ended, exits with 7 unless it completed."""
    try:
        with ProgressLine(sys.stderr) as progress:
            status = app.client.wait(
                job_id,
                timeout_seconds,
                on_progress=progress.show,
                on_outage=lambda error: note(f"warning: {error}; waiting goes on"),
            )
    except KeyboardInterrupt:
        note(
            f"ramole: job {job_id} runs on; `ramole status {job_id}` shows how far it is, "
            f"`ramole cancel {job_id}` stops it"
        )
        raise
    echo_status(status, as_json)
    if status.state is not JobState.COMPLETED:
        note(f"ramole: job {job_id} ended as {status.state.value}; see `ramole results {job_id}`")
        click.get_current_context().exit(EXIT_JOB_FAILED)


def require_worker_package() -> None:
    """Raises ConfigError when the worker's dependencies are missing."""
    if not worker_is_installed():
        raise ConfigError(
            "this command needs the extra `worker`; in the checkout: "
            "pip install -c constraints.txt '.[worker]'"
        )
