"""`ramole train retriever|router`."""

from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click
from pydantic import ValidationError

from producer.commands.common import App, counted, echo_json, json_option, require_worker_package
from producer.data_folder import check_data_folder
from producer.reasons import first_reason
from producer.training import run_training
from ramole_core.errors import InvalidInputError
from ramole_core.training import Activate, TrainReport, TrainRetriever, TrainRouter

Request = TypeVar("Request", TrainRetriever, TrainRouter)

_FILE: Final = click.Path(path_type=Path)
_activate_option = click.option(
    "--activate",
    type=click.Choice(get_args(Activate)),
    help="Put what was trained in use (if-better: than what is in use, on held-out data).",
)
_dry_run_option = click.option(
    "--dry-run", is_flag=True, default=None, help="Check, count and estimate; store nothing."
)
_seed_option = click.option("--seed", type=int, help="Same data and seed, same result (0).")


@click.group()
def train() -> None:
    """Trains the retriever or a router; what is better is in use from the next job on.

    \b
    Example: ramole train retriever --dry-run
    """


@train.command()
@click.option("--fraction", type=float, help="Share of the adapters to learn from (1.0).")
@_seed_option
@click.option("--data", type=_FILE, help="JSONL of adapter, samples; by default the uploaded ones.")
@click.option("--exclude", multiple=True, metavar="NAME,…", help="Adapters to leave out.")
@click.option("--steps", type=int, help="Training steps; 0: post-processing alone.")
@click.option(
    "--neighbours", type=int, help="Adapters tried on the samples of each other one (8; 0: none)."
)
@_activate_option
@_dry_run_option
@json_option
@click.pass_obj
def retriever(app: App, /, as_json: bool, exclude: tuple[str, ...], **flags: Any) -> None:
    """Trains the sentence encoder to tell the adapters' samples apart.

    Afterwards every adapter answers some samples of its neighbours: it is also found by prompts
    that it answers as their own adapters do. That part needs RAMOLE_MODEL as the workers have it.

    \b
    Example: ramole train retriever --fraction 0.4
    """
    _run(app, _request(TrainRetriever, {**flags, "exclude": _names(exclude)}), as_json)


@train.command()
@click.option("--data", type=_FILE, required=True, help="JSONL of prompt, target, adapter.")
@click.option("--adapters", multiple=True, metavar="NAME,…", help="Only these (repeat or commas).")
@_seed_option
@click.option("--rank", type=int, help="Rank of the router's matrices (8).")
@click.option("--prior/--no-prior", default=None, help="With the retrieval prior, gate mole (yes).")
@click.option("--candidates", type=int, metavar="N", help="Adapters of an example at once (all).")
@click.option("--dropout", type=float, help="Probability of leaving an adapter out (0.5).")
@click.option("--steps", type=int, help="Training steps at most (150).")
@click.option("--batch-size", type=int, help="Examples of a step (16).")
@click.option("--learning-rate", type=float, help="Of AdamW (0.003).")
@_activate_option
@_dry_run_option
@json_option
@click.pass_obj
def router(app: App, /, as_json: bool, adapters: tuple[str, ...], **flags: Any) -> None:
    """Trains a router on prompts with their right answers and the adapter made for each.

    A tenth of the lines is held out. Stopped before its end, it changes nothing.

    \b
    Example: ramole train router --data answers.jsonl --adapters summarise-de,rewrite-de
    """
    _run(app, _request(TrainRouter, {**flags, "adapters": _names(adapters)}), as_json)


def _names(given: tuple[str, ...]) -> list[str]:
    """`a,b` and `c`, given in turn, are three names."""
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def _request(kind: type[Request], flags: dict[str, Any]) -> Request:
    """The request of the given flags. Raises InvalidInputError that names the flag."""
    given = {name: value for name, value in flags.items() if value is not None}
    if "data" in given:
        given["data"] = str(given["data"])
    try:
        return kind.model_validate(given)
    except ValidationError as e:
        raise InvalidInputError(first_reason(e, _flag)) from e


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _run(app: App, request: TrainRetriever | TrainRouter, as_json: bool) -> None:
    """Trains; a failure has spoken on stderr already and only its exit code is passed on."""
    require_worker_package()
    check_data_folder(app.settings)
    finished = run_training(request, app.settings)
    line = next(reversed(finished.output.splitlines()), "")
    if finished.exit_code:
        if as_json and line:
            click.echo(line)
        click.get_current_context().exit(finished.exit_code)
    report = TrainReport.model_validate_json(line)
    if as_json:
        return echo_json(report)
    for name, value in _rows(report):
        click.echo(f"{name:<10}{value}")
    return None


def _rows(report: TrainReport) -> list[tuple[str, str]]:
    minutes = f"{report.seconds / 60:.1f} minutes"
    rows = [
        ("version", report.version or "-"),
        ("data", f"{counted(report.num_examples, 'example')} of {report.num_adapters} adapters"),
        ("learning", f"{report.num_parameters} parameters, {counted(report.num_steps, 'step')}"),
        ("time", f"about {minutes}" if report.version is None else minutes),
    ]
    if report.held_out_before is not None and report.held_out_after is not None:
        unit = "loss" if report.kind == "router" else "accuracy %"
        serving = report.held_out_serving
        now = "" if serving is None else f", {serving:.3f} in use so far"
        before, after = report.held_out_before, report.held_out_after
        rows.append(("held-out", f"{unit} {before:.3f} before{now}, {after:.3f} after"))
    return [*rows, ("verdict", report.verdict)]
