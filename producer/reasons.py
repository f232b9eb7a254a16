"""What pydantic complains of, in our own words and on one line."""

from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError

_WORDS: Final = {
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "literal_error": "one of {expected}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text of {min_length} or more characters",
    "string_too_long": "text of at most {max_length} characters",
    "tuple_type": "a list",
    "too_long": "a list of at most {max_length}",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
MAX_SHOWN_CHARS: Final = 60


def first_reason(error: ValidationError, named: Callable[[str], str] | None = None) -> str:
    """The first complaint: the path to the value, what it should be, what was given.

    `named`: the name of a field for the reader, in place of the path.
    """
    first: Any = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    where = named(path[0]) if named and path else ".".join(path)
    return f"{where}: {_said(first)}" if where else _said(first)


def _said(complaint: Any) -> str:
    kind, context = complaint["type"], complaint.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "missing"
    wanted = _WORDS[kind].format(**context) if kind in _WORDS else complaint["msg"]
    return f"{wanted}, not {_shown(complaint['input'])}"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:MAX_SHOWN_CHARS]
    except ValueError:  # Python writes no number of over 4300 digits
        return "a number of too many digits"
