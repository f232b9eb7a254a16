"""`ramole demo`."""

import json
import shutil
import sys

import click

from producer.commands.common import note, require_worker_package
from producer.demo import Answered, DemoRun, run_demo
from producer.progress import ProgressLine

SAMPLE_ROWS = 12
HEADER = ("PROMPT", "ADAPTERS similarity weight", "ANSWER", "EXPECTED")
SHARES = (0.36, 0.34, 0.15, 0.15)


@click.command()
@click.option("--prompts", type=click.IntRange(0), default=0, help="How many (all).")
@click.option("--keep", is_flag=True, help="Keep the temporary data folder.")
def demo(prompts: int, keep: bool) -> None:
    """Runs the whole system once on the built-in zoo and prints what it answers.

    The last line on stdout is one JSON object with the figures.

    \b
    Example: ramole demo --prompts 100
    """
    require_worker_package()
    with ProgressLine(sys.stderr) as progress:
        run = run_demo(prompts, keep, note, progress.show)
    _echo_samples(run, max(shutil.get_terminal_size((120, 24)).columns, 60))
    _echo_summary(run)
    click.echo(json.dumps(run.summary()))


def _echo_samples(run: DemoRun, columns: int) -> None:
    step = max(len(run.answered) // SAMPLE_ROWS, 1)
    widths = [int(columns * share) - 2 for share in SHARES]
    rows = [HEADER, *(_cells(answered) for answered in run.answered[::step][:SAMPLE_ROWS])]
    for row in rows:
        click.echo("  ".join(_fit(cell, w) for cell, w in zip(row, widths, strict=True)).rstrip())


def _cells(answered: Answered) -> tuple[str, str, str, str]:
    result = answered.result
    uses = ", ".join(
        f"{use.name} {use.similarity or 0.0:.2f} {use.weight:.2f}" for use in result.adapters
    )
    text = result.error.message if result.error else result.text or ""
    return answered.record["prompt"], uses, text, str(answered.record["target"])


def _echo_summary(run: DemoRun) -> None:
    figures = run.summary()
    click.echo(
        f"\n{figures['prompts']} prompts: {figures['accuracy']:.1%} right "
        f"(base model alone {figures['base_accuracy']:.1%}), the right adapter retrieved first for "
        f"{figures['retrieval_top1']:.1%}, {figures['tokens_per_second']} tokens/s, "
        f"{figures['seconds']} s in all"
    )


def _fit(text: str, width: int) -> str:
    line = " ".join(text.split())
    return (line if len(line) <= width else line[: width - 1] + "…").ljust(width)
