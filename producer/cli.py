"""`ramole`: the group of all commands. Every job of this file is wiring."""

from pathlib import Path

import click

from producer.commands.adapters import adapters, search
from producer.commands.common import App
from producer.commands.demo import demo
from producer.commands.jobs import cancel, jobs, recover, retry, status, wait
from producer.commands.results import results
from producer.commands.submit import submit
from producer.commands.system import doctor, down, logs, up, worker
from producer.commands.train import train
from producer.commands.versions import encoders, routers
from ramole_core import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ramole")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Data folder (RAMOLE_HOME, by default ./.ramole).",
)
@click.pass_context
def cli(context: click.Context, home: Path | None) -> None:
    """Batch inference over many LoRA adapters: retrieval and mixture per prompt.

    \b
    Example:
      ramole up --detach
      ramole adapters upload ./my-lora --name mine --samples inputs.jsonl
      ramole submit prompts.jsonl --wait
    """
    context.obj = App(home)


_COMMANDS = (
    up, down, submit, status, jobs, wait, results, cancel, retry, recover,
    adapters, search, train, encoders, routers, demo, worker, doctor, logs,
)  # fmt: skip
for _command in _COMMANDS:
    cli.add_command(_command)
