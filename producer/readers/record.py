"""One parsed record (a dict) becomes one PromptRequest; anything wrong with it becomes its error.

Contract: `RecordReader.request` never raises and never returns a prompt the worker would refuse.
"""

from collections.abc import Container, Mapping
from typing import Any, Final

from pydantic import ValidationError

from producer.readers.openai_batch import from_batch_line, is_batch_line
from producer.reasons import first_reason
from ramole_core.errors import printable
from ramole_core.jobs import (
    MAX_PROMPT_BYTES,
    AdapterChoice,
    ErrorRecord,
    Message,
    PromptOptions,
    PromptRequest,
)

OPTION_NAMES: Final = frozenset(PromptOptions.model_fields)
MAX_REASON_CHARS: Final = 300
MAX_ID: Final = 10**1000


class BadLineError(ValueError):
    """Raised when one line or record is not acceptable. Its text is the reason, without a place."""


class RecordReader:
    """Turns records into requests. A given field name marks the dataset as a foreign one.

    In our own format an unknown key is an error; in a foreign one (`prompt_field` or `id_field`
    given) keys that are neither those fields nor options are somebody's other columns.
    """

    def __init__(
        self, prompt_field: str | None = None, id_field: str | None = None, unit: str = "line"
    ) -> None:
        self.prompt_field = prompt_field or "prompt"
        self.id_field = id_field or "id"
        self._foreign = prompt_field is not None or id_field is not None
        self._unit = unit

    def request(self, index: int, number: int, record: Any) -> PromptRequest:
        """The request of the record at line (row, item) `number`."""
        try:
            return self._checked(index, record)
        except BadLineError as e:
            return self.bad(index, number, str(e), _known_id(record, self.id_field))

    def bad(self, index: int, number: int, reason: str, id: str | None = None) -> PromptRequest:
        """The request of a line that holds no usable record."""
        message = printable(f"{self._unit} {number}: {reason}"[:MAX_REASON_CHARS])
        error = ErrorRecord(code="bad_line", message=message[:MAX_REASON_CHARS])
        return PromptRequest(index=index, id=id, error=error)

    def _checked(self, index: int, record: Any) -> PromptRequest:
        if not isinstance(record, Mapping):
            raise BadLineError(f"a JSON object is needed, not {_type_name(record)}")
        rest = dict(record)
        if not self._foreign and is_batch_line(rest):
            rest = _batch_record(rest)
        prompt = rest.pop(self.prompt_field, None)
        id_ = _checked_id(rest.pop(self.id_field, None))
        messages = rest.pop("messages", None) if prompt is None or not self._foreign else None
        _check_prompt(prompt, messages, self.prompt_field)
        _check_keys("messages", messages, Message.model_fields)
        options = self._checked_options(rest) if rest else {}
        try:
            request = PromptRequest(
                index=index, id=id_, prompt=prompt, messages=messages, options=options
            )
        except ValidationError as e:
            raise BadLineError(first_reason(e)) from e
        if messages is not None:
            _check_messages(request)
        return request

    def _checked_options(self, rest: dict[str, Any]) -> dict[str, Any]:
        if self._foreign:
            rest = {name: value for name, value in rest.items() if name in OPTION_NAMES}
        unknown = [name for name in rest if name not in OPTION_NAMES]
        if unknown:
            remedy = f" (use --prompt-field {self.prompt_field} to ignore other keys)"
            raise BadLineError(
                f"unknown key {str(unknown[0])[:80]!r}{remedy if self._unit == 'line' else ''}"
            )
        _check_keys("adapters", rest.get("adapters"), AdapterChoice.model_fields)
        try:
            PromptOptions.model_validate(rest)
        except ValidationError as e:
            raise BadLineError(first_reason(e)) from e
        return rest


def _batch_record(record: dict[str, Any]) -> dict[str, Any]:
    try:
        return from_batch_line(record)
    except ValueError as e:
        raise BadLineError(str(e)) from e


def _check_prompt(prompt: Any, messages: Any, field: str) -> None:
    if prompt is None:
        if messages is None:
            raise BadLineError(f"missing prompt (no {field!r} and no 'messages')")
        return
    if messages is not None:
        raise BadLineError("both a prompt and messages; give one of them")
    if not isinstance(prompt, str):
        raise BadLineError(f"{field!r} must be text, not {_type_name(prompt)}")
    if not prompt:
        raise BadLineError("the prompt is empty")
    # A character has at most 4 bytes, so short prompts need not be encoded to be measured.
    if len(prompt) > MAX_PROMPT_BYTES // 4:
        _check_size(len(prompt.encode(errors="replace")))


def _check_keys(field: str, items: Any, known: Container[str]) -> None:
    """One complaint of an object with unknown keys; pydantic would make one of each key."""
    for number, item in enumerate(items if isinstance(items, list) else ()):
        for key in item if isinstance(item, dict) else ():
            if key not in known:
                raise BadLineError(f"{field}.{number}: unknown key {str(key)[:80]!r}")


def _check_messages(request: PromptRequest) -> None:
    if not request.query():
        raise BadLineError("messages: at least one user message with text is needed")
    _check_size(sum(len(message.content.encode()) for message in request.messages or ()))


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_PROMPT_BYTES:
        raise BadLineError(f"a prompt of {num_bytes} bytes; the limit is {MAX_PROMPT_BYTES}")


def _checked_id(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > MAX_ID:
            raise BadLineError("'id' is too large a number: write it as text")
        return str(value)
    raise BadLineError(f"'id' must be text or a whole number, not {_type_name(value)}")


def _known_id(record: Any, field: str) -> str | None:
    """The id of a bad record where it has a usable one, so that its owner finds it again."""
    if not isinstance(record, Mapping):
        return None
    value = record.get(field, record.get("custom_id"))
    return value[:200] if isinstance(value, str) and value.isprintable() else None


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number"}
    names |= {float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
