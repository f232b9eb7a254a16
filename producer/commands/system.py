"""`ramole up`, `down`, `worker`, `logs`, `doctor`."""

import os
import sys
from pathlib import Path
from typing import Final

import click

from producer.commands.common import App, echo_json, json_option, note, require_worker_package
from producer.data_folder import check_data_folder
from producer.doctor import examine
from producer.embedded.control import start_detached, stop
from producer.embedded.lock import Holder, down_command
from producer.embedded.supervisor import Supervisor
from producer.job_options import duration_seconds
from producer.logs import job_lines
from producer.pins import read_base
from ramole_core.errors import UnavailableError
from ramole_core.settings import Settings
from ramole_core.store import open_store

ZOO_NOTICE: Final = (
    "NOTE: this is the small built-in demonstration model, not a language model; "
    "for another: `ramole up --model PATH` or RAMOLE_MODEL, on a fresh data folder"
)


@click.command()
@click.option("--model", metavar="PATH", help="Base model: a folder or hub id (the built-in zoo).")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--detach", is_flag=True, help="Return when it is ready; it runs on.")
@click.option("--timeout", metavar="3m", help="With --detach: time to get ready (3m).")
@json_option
@click.pass_obj
def up(
    app: App, model: str | None, workers: int, detach: bool, timeout: str | None, as_json: bool
) -> None:
    """Starts the embedded system, or with RAMOLE_BROKER_URL only workers, and watches over it.

    \b
    Example: ramole up --detach --workers 2
    """
    if timeout is not None and not detach:
        raise click.UsageError("--timeout has no effect without --detach")
    require_worker_package()
    chosen = _absolute(model)
    settings = Settings.load(home=app.settings.home, model=chosen)
    if not detach:
        Supervisor(
            settings, workers, on_ready=lambda holder: note(_ready(app, holder, settings))
        ).run()
        return
    argv = [sys.executable, "-m", "producer", "--home", str(app.settings.home), "up"]
    argv += ["--workers", str(workers), *(["--model", chosen] if chosen else [])]
    holder = start_detached(settings, argv, duration_seconds(timeout or "3m"))
    if as_json:
        echo_json(holder)
    else:
        click.echo(_ready(app, holder, settings))


@click.command()
@json_option
@click.pass_obj
def down(app: App, as_json: bool) -> None:
    """Stops what `ramole up` runs on the data folder. No error when nothing runs.

    \b
    Example: ramole down
    """
    pid = stop(app.settings)
    if as_json:
        echo_json({"stopped_pid": pid})
    else:
        click.echo("nothing was running" if pid is None else f"stopped process {pid}")


@click.command()
@click.pass_obj
def worker(app: App) -> None:
    """Runs one worker process in the foreground. Its settings come from the environment.

    \b
    Example: RAMOLE_BROKER_URL=redis://queue:6379/0 ramole worker
    """
    require_worker_package()
    env = {**os.environ, "RAMOLE_HOME": str(app.settings.home)}
    os.execve(sys.executable, [sys.executable, "-m", "worker"], env)


@click.command()
@click.argument("job")
@click.pass_obj
def logs(app: App, job: str) -> None:
    """Prints the workers' log lines about JOB (JSON lines), by time.

    \b
    Example: ramole logs 20260131-060000-123-9f2c4e
    """
    check_data_folder(app.settings)
    for line in job_lines(app.settings.home / "logs", job):
        click.echo(line)


@click.command()
@json_option
@click.pass_obj
def doctor(app: App, as_json: bool) -> None:
    """Checks settings, Redis, store, workers and base model; exit code 5 when one is not well.

    \b
    Example: ramole doctor
    """
    checks = examine(app.settings)
    for check in checks:
        if as_json:
            echo_json(check)
        else:
            click.echo(f"{'ok' if check.ok else 'FAIL':<6}{check.name:<12}{check.detail}")
    if not all(check.ok for check in checks):
        click.get_current_context().exit(UnavailableError.exit_code)


def _absolute(model: str | None) -> str | None:
    """A folder that exists as an absolute path; anything else is a hub id."""
    return str(Path(model).absolute()) if model and Path(model).is_dir() else model


def _ready(app: App, holder: Holder, settings: Settings) -> str:
    base = read_base(open_store(settings)).name
    workers = ", ".join(map(str, holder.worker_pids))
    down = down_command(settings.home) if app.home else "ramole down"
    line = (
        f"ready: base model {base}, data folder {settings.home}, broker {holder.broker}, "
        f"supervisor process {holder.pid}, worker processes {workers}; stop with `{down}`"
    )
    return line if settings.model else f"{line}\n{ZOO_NOTICE}"
