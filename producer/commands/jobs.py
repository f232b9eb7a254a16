"""`ramole status`, `jobs`, `wait`, `cancel`, `retry`, `recover`."""

import sys

import click

from producer.commands.common import (
    App,
    counted,
    echo_json,
    echo_status,
    echo_table,
    json_option,
    note,
    shown_bytes,
    wait_and_report,
)
from producer.commands.submit import report
from producer.job_options import duration_seconds
from producer.progress import PruneLine
from producer.prune import Pruned, PrunedJob


@click.command()
@click.argument("job")
@json_option
@click.pass_obj
def status(app: App, job: str, as_json: bool) -> None:
    """Shows how far JOB is.

    \b
    Example: ramole status 20260131-060000-123-9f2c4e
    """
    echo_status(app.client.status(job), as_json)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def jobs(context: click.Context, as_json: bool) -> None:
    """Lists all jobs, oldest first. Needs the store alone.

    \b
    Example: ramole jobs
    """
    if context.invoked_subcommand is None:
        _list_jobs(context.obj, as_json)
    elif as_json:
        raise click.UsageError(f"--json stands behind `{context.invoked_subcommand}`")


def _list_jobs(app: App, as_json: bool) -> None:
    found = app.client.jobs(on_unreadable=lambda error: note(f"warning: {error}"))
    if as_json:
        for job in found:
            echo_json(job)
        return
    header = ("JOB", "STATE", "PROMPTS", "OK", "FAILED", "CREATED")
    rows = [(j.job_id, j.state, j.num_prompts, j.num_ok, j.num_failed, j.created_at) for j in found]
    echo_table(header, rows)


@jobs.command("prune")
@click.option(
    "--older-than",
    required=True,
    metavar="30d",
    help="Time since a job's end, with its unit: s, m (minutes), h, d.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@json_option
@click.pass_obj
def prune(app: App, older_than: str, dry_run: bool, as_json: bool) -> None:
    """Removes jobs that ended longer ago: inputs, results, all. Needs the store alone.

    Also what cut submissions, uploads and searches left, and verdicts on uploads, of that age and
    at least a day. Jobs that have not ended stay.

    \b
    Example: ramole jobs prune --older-than 30d --dry-run
    """
    age_seconds = duration_seconds(older_than, unit_needed=True)
    with PruneLine(sys.stderr) as line:
        total = app.client.prune(age_seconds, dry_run, echo_json if as_json else _echo, line.show)
    if as_json:
        echo_json(total)
    else:
        click.echo(_summary(total))


def _echo(job: PrunedJob) -> None:
    size = shown_bytes(job.size_bytes)
    click.echo(f"{job.job_id}  ended {job.ended_at}  {counted(job.num_objects, 'object')}  {size}")


def _summary(total: Pruned) -> str:
    parts = [
        counted(total.num_jobs, "job"),
        *(
            counted(number, noun)
            for number, noun in (
                (total.num_submissions, "cut submission"),
                (total.num_uploads, "staged upload"),
                (total.num_messages, "message"),
                (total.num_markers, "marker"),
                (total.num_files, "temporary file"),
            )
            if number
        ),
    ]
    verb = "would remove" if total.dry_run else "removed"
    size = shown_bytes(total.size_bytes)
    return f"{verb} {', '.join(parts)}: {counted(total.num_objects, 'object')}, {size}"


@click.command()
@click.argument("job")
@click.option("--timeout", metavar="30m", help="Give up after this long (exit code 8).")
@json_option
@click.pass_obj
def wait(app: App, job: str, timeout: str | None, as_json: bool) -> None:
    """Waits until JOB has ended.

    Exit codes: 0 every prompt has an answer, 7 some have none or it was cancelled, 8 timeout.

    \b
    Example: ramole wait 20260131-060000-123-9f2c4e --timeout 30m
    """
    wait_and_report(app, job, duration_seconds(timeout) if timeout else None, as_json)


@click.command()
@click.argument("job")
@json_option
@click.pass_obj
def cancel(app: App, job: str, as_json: bool) -> None:
    """Stops JOB; shards that are finished keep their results.

    \b
    Example: ramole cancel 20260131-060000-123-9f2c4e
    """
    echo_status(app.client.cancel(job), as_json)


@click.command()
@click.argument("job")
@json_option
@click.pass_obj
def retry(app: App, job: str, as_json: bool) -> None:
    """Submits the prompts of JOB that have no answer as a new job, with their options.

    \b
    Example: ramole retry nightly-2026-01-31
    """
    report(app.client.retry(job), as_json)


@click.command()
@click.argument("job", required=False)
@json_option
@click.pass_obj
def recover(app: App, job: str | None, as_json: bool) -> None:
    """Rebuilds queue and progress of JOB, or of all that have not ended, from the store alone.

    For a Redis that was wiped or came back with old data. Workers find out by themselves within a
    minute; this has them look at once. What is whole is left as it is, and no prompt is answered
    twice.

    \b
    Example: ramole recover
    """
    found = app.client.recover(job)
    if as_json:
        echo_json({"recovered": found})
    else:
        click.echo("\n".join(found) or "no job is open")
