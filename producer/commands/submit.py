"""`ramole submit`."""

from typing import Any

import click

from producer.commands.common import (
    App,
    counted,
    echo_json,
    json_option,
    note,
    wait_and_report,
    warn_unknown,
)
from producer.commands.job_flags import given_options, job_flags
from producer.job_options import duration_seconds
from producer.readers import FORMATS, Dataset
from producer.submission import SubmittedJob


@click.command()
@click.argument("dataset")
@click.option("--format", type=click.Choice(FORMATS), help="By default from the suffix.")
@click.option("--prompt-field", metavar="NAME", help="Key or column of the prompt (prompt).")
@click.option("--id-field", metavar="NAME", help="Key or column of the id (id).")
@click.option("--job-id", metavar="ID", help="Submitting equal content again is the same job.")
@click.option("--strict", is_flag=True, help="Stop at the first bad line; nothing is enqueued.")
@click.option("--wait", is_flag=True, help="Wait for the end, then exit as `ramole wait` does.")
@click.option("--timeout", metavar="30m", help="With --wait: give up after this long (exit 8).")
@job_flags
@json_option
@click.pass_obj
def submit(
    app: App,
    /,
    dataset: str,
    format: str | None,
    prompt_field: str | None,
    id_field: str | None,
    job_id: str | None,
    strict: bool,
    wait: bool,
    timeout: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Submits DATASET as a job and prints the job's id.

    DATASET is a file (.jsonl .csv .parquet .txt), - for standard input, or store:KEY. A bad line
    becomes an error record with its number; with --strict it stops the submission.

    \b
    Example: ramole submit prompts.jsonl --k 3 --max-new-tokens 64 --wait
    """
    if timeout and not wait:
        raise click.UsageError("--timeout has no effect without --wait")
    options = given_options(flags)
    timeout_seconds = duration_seconds(timeout) if timeout else None
    source = Dataset(dataset, format, prompt_field, id_field)
    job = app.client.submit(source, job_id=job_id, strict=strict, **options)
    report(job, as_json)
    warn_unknown(app, options.get("exclude_adapters", ()))
    if wait:
        wait_and_report(app, job.job_id, timeout_seconds, as_json)


def report(job: SubmittedJob, as_json: bool) -> None:
    """Prints a submission: the id on stdout, the counts on stderr."""
    if as_json:
        return echo_json(job)
    click.echo(job.job_id)
    what = "submitted" if job.created else "submitted before"
    note(f"{what}: {counted(job.num_prompts, 'prompt')} in {counted(job.num_shards, 'shard')}")
    if job.num_bad_lines:
        note(f"{counted(job.num_bad_lines, 'bad line')} among them; first {job.first_bad_line}")
    return None
