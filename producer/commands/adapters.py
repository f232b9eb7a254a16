"""`ramole adapters upload|list|show|remove` and `ramole search`."""

from pathlib import Path
from typing import Final

import click

from producer.adapters import Upload
from producer.commands.common import (
    App,
    echo_json,
    echo_table,
    json_option,
    note,
    warn_unknown,
)

MAX_VERSION_DIGITS: Final = 9


@click.group()
def adapters() -> None:
    """Uploads, lists, shows and removes adapters.

    \b
    Example: ramole adapters list
    """


@adapters.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name; a known one gets a new version.")
@click.option(
    "--samples",
    required=True,
    type=click.Path(path_type=Path),
    help="JSONL of 1 to 1,000 strings: inputs the adapter was made for.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for the worker's verdict.")
@json_option
@click.pass_obj
def upload(app: App, folder: Path, name: str, samples: Path, no_wait: bool, as_json: bool) -> None:
    """Uploads the LoRA adapter in FOLDER, as PEFT saves it.

    \b
    Example: ramole adapters upload ./my-lora --name summarise-de --samples inputs.jsonl
    """
    found = app.client.upload_adapter(folder, name, samples, wait=not no_wait)
    if as_json:
        return echo_json(found)
    for warning in found.warnings:
        note(f"warning: {warning}")
    return click.echo(_verdict(found))


@adapters.command("list")
@click.option("--all", "with_removed", is_flag=True, help="Old and removed versions too.")
@json_option
@click.pass_obj
def list_(app: App, with_removed: bool, as_json: bool) -> None:
    """Lists the adapters. Needs the store alone.

    \b
    Example: ramole adapters list
    """
    rows = app.client.adapters(with_removed)
    if as_json:
        for row in rows:
            echo_json(row)
        return
    states = {True: "removed", False: ""}
    cells = [
        (row.name, row.version, "active" if row.active else states[row.removed], row.added_at)
        for row in rows
    ]
    echo_table(("NAME", "VERSION", "STATE", "ADDED"), cells)


@adapters.command()
@click.argument("adapter", metavar="NAME[@VERSION]")
@json_option
@click.pass_obj
def show(app: App, adapter: str, as_json: bool) -> None:
    """Shows one adapter: its versions, ranks, targets, samples and warnings.

    \b
    Example: ramole adapters show summarise-de@2
    """
    found = app.client.adapter(*_name_and_version(adapter))
    if as_json:
        return echo_json(found)
    card = found.card
    low, high = min(card.ranks.values()), max(card.ranks.values())
    click.echo(f"name      {card.name}@{card.version}")
    click.echo(f"owner     {card.owner}")
    click.echo(f"versions  {', '.join(str(row.version) for row in found.versions)}")
    click.echo(f"rank      {low}" + (f" to {high}" if low != high else ""))
    click.echo(f"targets   {', '.join(card.targets)} ({len(card.ranks)} linears, {card.dtype})")
    click.echo(f"samples   {card.num_samples}")
    click.echo(f"created   {card.created_at}")
    for warning in card.warnings:
        click.echo(f"warning   {warning}")
    return None


@adapters.command()
@click.argument("adapter", metavar="NAME[@VERSION]")
@click.option("--any-owner", is_flag=True, help="Also what somebody else uploaded (operators).")
@json_option
@click.pass_obj
def remove(app: App, adapter: str, any_owner: bool, as_json: bool) -> None:
    """Removes an adapter, or one version of it; jobs that run keep what they use.

    \b
    Example: ramole adapters remove summarise-de
    """
    removed = app.client.remove_adapter(*_name_and_version(adapter), any_owner=any_owner)
    if as_json:
        return echo_json({"removed": [str(ref) for ref in removed]})
    if not removed:
        return click.echo(f"{adapter} was removed before")
    return click.echo(f"removed {', '.join(map(str, removed))}")


@click.command()
@click.argument("text")
@click.option("--k", type=int, default=3, show_default=True, help="How many.")
@click.option("--allow-adapter", "allow", multiple=True, metavar="NAME", help="Only these.")
@click.option("--exclude-adapter", "exclude", multiple=True, metavar="NAME", help="Never these.")
@json_option
@click.pass_obj
def search(
    app: App, text: str, k: int, allow: tuple[str, ...], exclude: tuple[str, ...], as_json: bool
) -> None:
    """Shows which adapters a worker would retrieve for TEXT.

    \b
    Example: ramole search "Translate to German: good morning" --k 5
    """
    matches = app.client.search(text, k, allow or None, exclude)
    warn_unknown(app, exclude)
    if as_json:
        for match in matches:
            echo_json(match)
        return
    rows = [(m.name, m.version, f"{m.similarity:.3f}") for m in matches]
    echo_table(("NAME", "VERSION", "SIMILARITY"), rows)


def _name_and_version(text: str) -> tuple[str, int | None]:
    name, at, version = text.partition("@")
    if at and not (version.isdecimal() and len(version) <= MAX_VERSION_DIGITS):
        raise click.UsageError(
            f"{text[:120]!r}: use NAME or NAME@VERSION, of {MAX_VERSION_DIGITS} digits at most"
        )
    return name, int(version) if at else None


def _verdict(found: Upload) -> str:
    if found.status == "staged":
        return f"staged {found.name} as upload {found.upload_id}"
    return f"{found.status} {found.name}@{found.version}"
