"""The flags of job options, one for every field of JobOptions, in one decorator."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, get_args

import click

from producer.job_options import adapter_choice, deadline
from ramole_core.jobs import MAX_K, Gate, Priority

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS: Final[list[tuple[tuple[str, ...], dict[str, Any]]]] = [
    (("--k",), {"type": int, "help": f"Adapters retrieved per prompt, 1 to {MAX_K} (3)."}),
    (
        ("--gate",),
        {
            "type": click.Choice(get_args(Gate)),
            "help": "How adapters are mixed (cascade: mole, and where that is not sure, the best "
            "answer of each adapter alone).",
        },
    ),
    (("--min-similarity",), {"type": float, "help": "Adapters less similar are not used."}),
    (
        ("--on-no-adapter",),
        {"type": click.Choice(["base", "fail"]), "help": "When no adapter applies (base)."},
    ),
    (
        ("--allow-adapter", "allow_adapters"),
        {"multiple": True, "metavar": "NAME", "help": "Retrieve among these only (repeat)."},
    ),
    (
        ("--exclude-adapter", "exclude_adapters"),
        {"multiple": True, "metavar": "NAME", "help": "Never retrieve these (repeat)."},
    ),
    (
        ("--adapter", "adapters"),
        {
            "multiple": True,
            "metavar": "NAME[@VERSION][=WEIGHT]",
            "help": "Use exactly these, without retrieval (repeat).",
        },
    ),
    (("--base-only",), {"is_flag": True, "help": "Use no adapter at all."}),
    (("--max-new-tokens",), {"type": int, "help": "Tokens of an answer at most (128)."}),
    (("--temperature",), {"type": float, "help": "0 takes the likeliest token (0)."}),
    (("--top-p",), {"type": float, "help": "Sample among the likeliest tokens (1)."}),
    (("--seed",), {"type": int, "help": "Seed of the sampling; by default from job and index."}),
    (("--stop",), {"multiple": True, "metavar": "TEXT", "help": "End an answer here (repeat)."}),
    (
        ("--on-too-long",),
        {"type": click.Choice(["fail", "truncate"]), "help": "Prompts over the context (fail)."},
    ),
    (("--priority",), {"type": click.Choice(get_args(Priority)), "help": "Whose turn (normal)."}),
    (("--shard-size",), {"type": int, "help": "Prompts per shard at most (256)."}),
    (("--deadline",), {"metavar": "8h|TIME", "help": "Duration from now, or an ISO time."}),
]


def job_flags(command: F) -> F:
    """Adds the flags to a command; it gets them as keyword arguments for `given_options`."""
    for names, attributes in reversed(_FLAGS):
        command = click.option(*names, **attributes)(command)
    return command


def given_options(flags: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line, as fields of JobOptions. Raises InvalidInputError."""
    if flags["k"] is not None and (flags["adapters"] or flags["base_only"]):
        raise click.UsageError("--k has no effect beside --adapter or --base-only: leave it out")
    if flags.pop("base_only"):
        if flags["adapters"]:
            raise click.UsageError("--base-only and --adapter exclude each other")
        return {**given_options({**flags, "base_only": False}), "adapters": ()}
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    if "adapters" in given:
        given["adapters"] = tuple(adapter_choice(text) for text in given["adapters"])
    if "deadline" in given:
        given["deadline"] = deadline(given["deadline"])
    return given
