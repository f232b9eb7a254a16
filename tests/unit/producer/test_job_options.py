"""Options as people type them."""

import datetime

import click
import pytest

from producer.commands.job_flags import _FLAGS, given_options
from producer.job_options import adapter_choice, deadline, duration_seconds
from ramole_core.errors import InvalidInputError
from ramole_core.jobs import JobOptions

NOW = datetime.datetime(2026, 1, 31, 6, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5 m", "5y"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="8h"):
        duration_seconds(text)


def test_a_deadline_is_stored_as_a_time_with_its_zone() -> None:
    assert deadline("8h", NOW) == "2026-01-31T14:00:00+00:00"
    assert deadline("2026-02-01T06:00+01:00", NOW) == "2026-02-01T05:00:00+00:00"
    naive = datetime.datetime.fromisoformat(deadline("2026-02-01T06:00", NOW))
    assert naive == datetime.datetime(2026, 2, 1, 6, 0).astimezone()
    for text in ("2026-01-01T00:00+00:00", "whenever"):
        with pytest.raises(InvalidInputError, match="deadline"):
            deadline(text, NOW)


def test_adapter_choices() -> None:
    for text, expected in (
        ("a", ("a", None, 1.0)),
        ("a@2", ("a", 2, 1.0)),
        ("a=0.5", ("a", None, 0.5)),
        ("a-b.c@12=-1e-1", ("a-b.c", 12, -0.1)),
    ):
        choice = adapter_choice(text)
        assert (choice.name, choice.version, choice.weight) == expected
    for text in ("", "@2", "a@", "a@x", "a=", "a=x", "a=99", "../a", "a@0"):
        with pytest.raises(InvalidInputError):
            adapter_choice(text)


def test_every_job_option_has_a_flag() -> None:
    command = click.Command("x", params=[click.Option(names, **attrs) for names, attrs in _FLAGS])
    names = {param.name for param in command.params} - {"base_only"}
    assert names == set(JobOptions.model_fields)


def test_only_given_flags_become_options() -> None:
    flags = {"k": None, "stop": (), "adapters": (), "base_only": False, "seed": 0}
    assert given_options(dict(flags)) == {"seed": 0}
    assert given_options(flags | {"base_only": True}) == {"seed": 0, "adapters": ()}
    with pytest.raises(click.UsageError):
        given_options(flags | {"base_only": True, "adapters": ("a",)})
