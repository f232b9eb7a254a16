"""Options as people type them."""

import datetime
from typing import Any

import click
import pytest

from producer.commands.job_flags import _FLAGS, given_options
from producer.job_options import adapter_choice, deadline, duration_seconds, flag, job_options
from ramole_core.errors import InvalidInputError
from ramole_core.jobs import JobOptions

NOW = datetime.datetime(2026, 1, 31, 6, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


def test_a_unit_may_be_needed() -> None:
    assert duration_seconds("1d12h", unit_needed=True) == 36 * 3600
    for text in ("30", "0", "1.5"):
        with pytest.raises(InvalidInputError, match=f"'{text}' has no unit; .* 30d"):
            duration_seconds(text, unit_needed=True)


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5 m", "5y"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="8h"):
        duration_seconds(text)


def test_a_deadline_is_stored_as_a_time_with_its_zone() -> None:
    assert deadline("8h", NOW) == "2026-01-31T14:00:00+00:00"
    assert deadline("2026-02-01T06:00+01:00", NOW) == "2026-02-01T05:00:00+00:00"
    naive = datetime.datetime.fromisoformat(deadline("2026-02-01T06:00", NOW))
    assert naive == datetime.datetime(2026, 2, 1, 6, 0).astimezone()
    for text, said in (
        ("2026-01-01T00:00+00:00", "has passed"),
        ("whenever", "use a duration"),
        ("99999999d", "too far away"),
        ("9" * 400, "too far away"),
        ("9999-12-31T23:59-10:00", "too far away"),
    ):
        with pytest.raises(InvalidInputError, match=f"deadline .*{said}"):
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
        with pytest.raises(InvalidInputError, match="^--adapter "):
            adapter_choice(text)
    with pytest.raises(InvalidInputError, match="'a=nan': weight: at most 10.0, not nan"):
        adapter_choice("a=nan")


def test_every_job_option_has_a_flag() -> None:
    command = click.Command("x", params=[click.Option(names, **attrs) for names, attrs in _FLAGS])
    flags = {param.name: param.opts for param in command.params if param.name != "base_only"}
    assert flags == {option: [flag(option)] for option in JobOptions.model_fields}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 99}, "--k: at most 16, not 99"),
        ({"k": "3"}, "--k: a whole number, not '3'"),
        ({"gate": "x"}, "--gate: one of 'mole', "),
        ({"top_p": 0.0}, "--top-p: more than 0.0, not 0.0"),
        ({"temperature": "hot"}, "--temperature: a number, not 'hot'"),
        ({"stop": [""]}, "--stop: text of 1 or more characters, not ''"),
        ({"exclude_adapters": ["x y"]}, "--exclude-adapter: name 'x y': use 1 to 100 letters"),
        ({"adapters": [{"name": "a", "weight": float("nan")}]}, "--adapter: at most 10.0, not nan"),
        ({"kk": 1}, "kk: unknown key"),
    ],
)
def test_a_bad_option_is_named_by_its_flag_and_said_once(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        job_options(options)
    text = str(caught.value)
    assert text.startswith(said) and "Input should" not in text and "Value error" not in text
    assert text.count("'x y'") <= 1


def test_only_given_flags_become_options() -> None:
    flags = {"k": None, "stop": (), "adapters": (), "base_only": False, "seed": 0}
    assert given_options(dict(flags)) == {"seed": 0}
    assert given_options(flags | {"base_only": True}) == {"seed": 0, "adapters": ()}
    with pytest.raises(click.UsageError):
        given_options(flags | {"base_only": True, "adapters": ("a",)})
    for chosen in ({"base_only": True}, {"adapters": ("a",)}):
        with pytest.raises(click.UsageError, match="--k has no effect"):
            given_options(flags | {"k": 3} | chosen)
