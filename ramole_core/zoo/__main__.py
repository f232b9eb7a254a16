"""`python -m ramole_core.zoo build | check`."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from ramole_core.zoo import data_path


@click.group()
def main() -> None:
    """Build the zoo's data again, or measure it."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=data_path(), help="Folder to make.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Torch threads; part of the result.")
def build(out: Path, seed: int, threads: int) -> None:
    """Train base and adapters from a seed: about 13 minutes on one core.

    Example: python -m ramole_core.zoo build --out zoo-1 --seed 1
    """
    from ramole_core.zoo.build import build as build_zoo

    _quiet_torch(threads)
    start = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"[{time.monotonic() - start:5.0f} s] {line}", err=True)

    build_zoo(out, seed, say)
    say(f"done: {out}")


@main.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), default=data_path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--threads", default=2, show_default=True)
def check(data: Path, as_json: bool, threads: int) -> None:
    """Print the exact match of the base and of each adapter on the test file.

    Example: python -m ramole_core.zoo check
    """
    from ramole_core.zoo.evaluate import mean, measure

    _quiet_torch(threads)
    accuracy = measure(data)
    if as_json:
        click.echo(json.dumps(asdict(accuracy)))
        return
    click.echo(f"{'adapter':20} {'base':>6} {'own':>6}")
    for name, own in accuracy.own.items():
        click.echo(f"{name:20} {accuracy.base[name]:6.3f} {own:6.3f}")
    click.echo(f"{'mean':20} {mean(accuracy.base):6.3f} {mean(accuracy.own):6.3f}")


def _quiet_torch(threads: int) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
