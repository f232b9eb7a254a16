"""`ramole encoders list|use|rollback` and `ramole routers list|use|rollback`."""

import click

from producer.commands.common import App, echo_json, echo_table, json_option
from producer.versions import EncoderRow, RouterRow
from ramole_core.activations import Active


@click.group()
def encoders() -> None:
    """Lists encoder versions and switches between them.

    \b
    Example: ramole encoders list
    """


@encoders.command("list")
@json_option
@click.pass_obj
def list_encoders(app: App, as_json: bool) -> None:
    """Lists the encoder versions; held-out accuracy is before → after training.

    \b
    Example: ramole encoders list
    """
    rows = app.client.encoders()
    if as_json:
        for row in rows:
            echo_json(row)
        return
    header = ("VERSION", "STATE", "TRAINED FROM", "ADAPTERS", "TOP-1", "TOP-3", "TOP-5", "TAU")
    echo_table((*header, "CREATED"), map(_encoder_cells, rows))


@encoders.command("use")
@click.argument("version")
@json_option
@click.pass_obj
def use_encoder(app: App, version: str, as_json: bool) -> None:
    """Puts VERSION in use for jobs submitted from now on; workers follow within seconds.

    \b
    Example: ramole encoders use tuned-1f2e3d4c
    """
    _echo_active(app.client.use_encoder(version), as_json)


@encoders.command("rollback")
@json_option
@click.pass_obj
def rollback_encoder(app: App, as_json: bool) -> None:
    """Goes back to the encoder that was in use before; again and again, step by step.

    \b
    Example: ramole encoders rollback
    """
    _echo_active(app.client.rollback_encoder(), as_json)


@click.group()
def routers() -> None:
    """Lists router versions and switches between them.

    \b
    Example: ramole routers list
    """


@routers.command("list")
@json_option
@click.pass_obj
def list_routers(app: App, as_json: bool) -> None:
    """Lists the router versions; the loss is the held-out one, without → with the router.

    \b
    Example: ramole routers list
    """
    rows = app.client.routers()
    if as_json:
        for row in rows:
            echo_json(row)
        return
    header = ("VERSION", "STATE", "RANK", "BASE", "ADAPTERS", "LOSS", "CREATED")
    echo_table(header, map(_router_cells, rows))


@routers.command("use")
@click.argument("version", metavar="VERSION|none")
@json_option
@click.pass_obj
def use_router(app: App, version: str, as_json: bool) -> None:
    """Puts VERSION in use for jobs submitted from now on; `none`: no router.

    \b
    Example: ramole routers use router-1f2e3d4c
    """
    _echo_active(app.client.use_router(None if version == "none" else version), as_json)


@routers.command("rollback")
@json_option
@click.pass_obj
def rollback_router(app: App, as_json: bool) -> None:
    """Goes back to the router that was in use before (or none); again and again, step by step.

    \b
    Example: ramole routers rollback
    """
    _echo_active(app.client.rollback_router(), as_json)


def _echo_active(active: Active, as_json: bool) -> None:
    if as_json:
        return echo_json({"encoder": active.encoder, "router": active.router})
    return click.echo(f"in use: encoder {active.encoder}, router {active.router or 'none'}")


def _encoder_cells(row: EncoderRow) -> tuple[object, ...]:
    card, state = row.card, _state(row.in_use)
    if card is None:
        return (row.version, state, *("-",) * 7)
    before, after = card.held_out_before, card.held_out_after
    tops = [
        f"{getattr(before, top):.1f} → {getattr(after, top):.1f}" if before and after else "-"
        for top in ("top1", "top3", "top5")
    ]
    origin = (card.trained_from, len(card.adapters))
    return (row.version, state, *origin, *tops, f"{card.tau:g}", card.created_at)


def _router_cells(row: RouterRow) -> tuple[object, ...]:
    card = row.card
    before, after = card.held_out_before, card.held_out_after
    loss = f"{before:.3f} → {after:.3f}" if before is not None and after is not None else "-"
    cells = (card.rank, card.base, len(card.adapters), loss, card.created_at)
    return (row.version, _state(row.in_use), *cells)


def _state(in_use: bool) -> str:
    return "in use" if in_use else ""
