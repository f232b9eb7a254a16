"""Job options as people give them: names checked, durations and adapter choices read."""

import datetime
import re
from typing import Any, Final

from pydantic import ValidationError

from producer.reasons import first_reason
from ramole_core.errors import InvalidInputError
from ramole_core.jobs import AdapterChoice, JobOptions, parse_time, utc_now

_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_CHOICE: Final = re.compile(r"([^@=]+)(?:@(\d+))?(?:=([^=]+))?")


def job_options(given: dict[str, Any]) -> JobOptions:
    """The options, with defaults for what is not given. Raises InvalidInputError naming one."""
    try:
        return JobOptions.model_validate(given)
    except ValidationError as e:
        raise InvalidInputError(first_reason(e, flag)) from e


def flag(option: str) -> str:
    """The flag that sets an option; a name that is none stays as it is."""
    known = option in JobOptions.model_fields
    return "--" + re.sub("adapters$", "adapter", option).replace("_", "-") if known else option


def duration_seconds(text: str, unit_needed: bool = False) -> float:
    """Reads `90`, `90s`, `30m`, `8h`, `1h30m`, `2d`; with `unit_needed` not the first. Raises
    InvalidInputError."""
    found = _DURATION.fullmatch(text)
    if text.replace(".", "", 1).isdecimal():
        if unit_needed:
            raise InvalidInputError(
                f"{text[:40]!r} has no unit; add s, m (minutes), h or d: for example 30d"
            )
        return float(text)
    if not text or found is None:
        raise InvalidInputError(f"{text[:40]!r} is no duration; use for example 90s, 30m, 8h, 2d")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def deadline(text: str, now: datetime.datetime | None = None) -> str:
    """A duration from now, or an ISO time (local when it names no zone), as ISO with a zone."""
    now = now or utc_now()
    try:
        moment = _moment(text, now)
    except InvalidInputError as e:
        raise InvalidInputError(
            f"deadline {text[:40]!r}: use a duration (8h, 30m) or a time (2026-01-31T06:00+01:00)"
        ) from e
    except OverflowError as e:
        raise InvalidInputError(
            f"deadline {text[:40]!r} is too far away; the calendar ends with the year 9999"
        ) from e
    if moment <= now:
        raise InvalidInputError(f"deadline {text[:40]!r} has passed already")
    return moment.isoformat(timespec="seconds")


def _moment(text: str, now: datetime.datetime) -> datetime.datetime:
    try:
        return parse_time(text).astimezone(datetime.UTC)
    except ValueError:
        return now + datetime.timedelta(seconds=duration_seconds(text))


def adapter_choice(text: str) -> AdapterChoice:
    """Reads NAME, NAME@VERSION, NAME=WEIGHT or NAME@VERSION=WEIGHT. Raises InvalidInputError."""
    found = _CHOICE.fullmatch(text)
    try:
        if found is None:
            raise ValueError("no such form")
        name, version, weight = found.groups()
        return AdapterChoice(
            name=name,
            version=int(version) if version else None,
            weight=float(weight) if weight else 1.0,
        )
    except ValidationError as e:
        raise InvalidInputError(f"--adapter {text[:120]!r}: {first_reason(e)}") from e
    except ValueError as e:
        raise InvalidInputError(
            f"--adapter {text[:120]!r}: use NAME, NAME@VERSION or NAME@VERSION=WEIGHT"
        ) from e
