"""Lines of the OpenAI batch format, as our own records.

Kept: custom_id, messages or prompt, max_tokens / max_completion_tokens, temperature, top_p, seed,
stop. Without effect and accepted: model, user, metadata, n = 1, stream = false. Anything else
would change the answer and is refused by name.
"""

from collections.abc import Mapping
from typing import Any, Final

_RENAMED: Final = {
    "messages": "messages",
    "prompt": "prompt",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
}
_INERT: Final[dict[str, tuple[Any, ...]]] = {"n": (1,), "stream": (False,)}
_IGNORED: Final = {"model", "user", "metadata"}
_LINE_KEYS: Final = {"custom_id", "method", "url", "body"}
_URLS: Final = ("/v1/chat/completions", "/v1/completions")


def is_batch_line(record: Mapping[str, Any]) -> bool:
    """True when the record has the shape {"custom_id", "method", "url", "body"}."""
    return "body" in record and "prompt" not in record and "messages" not in record


def from_batch_line(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with our names. Raises ValueError with the reason."""
    body = record["body"]
    if not isinstance(body, Mapping):
        raise ValueError("'body' must be an object")
    unknown = next((key for key in record if key not in _LINE_KEYS), None)
    if unknown is not None:
        raise ValueError(f"unknown key {str(unknown)[:80]!r} beside 'body'")
    if record.get("method", "POST") != "POST" or record.get("url", _URLS[0]) not in _URLS:
        raise ValueError(f"only POST to {' or '.join(_URLS)} is supported")
    mapped = _mapped(body)
    if isinstance(mapped.get("stop"), str):
        mapped["stop"] = [mapped["stop"]]
    if record.get("custom_id") is not None:
        mapped["id"] = record["custom_id"]
    return mapped


def _mapped(body: Mapping[str, Any]) -> dict[str, Any]:
    mapped: dict[str, Any] = {}
    for key, value in body.items():
        if value is None or key in _IGNORED or value in _INERT.get(key, ()):
            continue
        if key not in _RENAMED:
            raise ValueError(f"body key {str(key)[:80]!r} is not supported")
        mapped[_RENAMED[key]] = value
    return mapped
