"""Questions to the workers: a message out, the answer from the store under `replies/`."""

import secrets
from contextlib import suppress
from typing import Any, Final

from pydantic import Field

from producer.broker import Broker
from producer.job_options import flag
from producer.pins import known_adapter, read_registry
from producer.polling import Clock, poll
from ramole_core import keys, messages
from ramole_core.errors import (
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
    TimedOutError,
    UnavailableError,
)
from ramole_core.jobs import Wire, checked_name
from ramole_core.store import ObjectStore
from ramole_core.store.base import get_json, to_json

REPLY_SECONDS: Final = 30.0
# As the worker has them.
MAX_SEARCH_CHARS: Final = 1 << 20
MAX_SEARCH_K: Final = 1000
_OUTAGES: Final = {UnavailableError.code, StoreUnavailableError.code}


class Match(Wire):
    """One adapter that a search found, best first."""

    name: str
    version: int
    similarity: float = Field(ge=-1.01, le=1.01)


def require_worker(broker: Broker) -> None:
    """Raises UnavailableError when Redis is away or no worker lives."""
    broker.check()
    if not broker.live_workers():
        raise UnavailableError("no worker is running; start one with `ramole up`")


def await_reply(
    store: ObjectStore, request_id: str, what: str, timeout_seconds: float, clock: Clock | None
) -> dict[str, Any]:
    """The reply once it is there; it stays in the store. Raises TimedOutError."""
    key = keys.reply(request_id)
    reply = poll(lambda: _found(store, key), timeout_seconds, clock)
    if reply is None:
        raise TimedOutError(
            f"no worker answered {what} within {timeout_seconds:g} s; "
            "`ramole doctor` shows the workers"
        )
    return reply


def search(
    store: ObjectStore,
    broker: Broker,
    question: dict[str, Any],
    timeout_seconds: float = REPLY_SECONDS,
    clock: Clock | None = None,
) -> list[Match]:
    """Asks a worker which adapters fit a text. `question` has the keys of its SearchRequest.

    Raises InvalidInputError, UnavailableError, TimedOutError.
    """
    _check(store, question)
    require_worker(broker)
    request_id = secrets.token_hex(12)
    store.put(keys.request(request_id), to_json({"kind": "search", **question}))
    try:
        broker.send(messages.ANSWER, request_id)
        reply = await_reply(store, request_id, "the search", timeout_seconds, clock)
    finally:
        with suppress(StoreUnavailableError):  # a producer's key need not be allowed to delete
            store.delete(keys.request(request_id))
            store.delete(keys.reply(request_id))
    if error := reply.get("error"):
        kind = UnavailableError if error["code"] in _OUTAGES else InvalidInputError
        raise kind(f"search: {error['message']}")
    return [Match.model_validate(match) for match in reply["adapters"]]


def _check(store: ObjectStore, question: dict[str, Any]) -> None:
    text, k, allowed = question["text"], question["k"], question["allow_adapters"]
    if not 1 <= len(text) <= MAX_SEARCH_CHARS:
        raise InvalidInputError(f"TEXT: 1 to {MAX_SEARCH_CHARS} characters, not {len(text)}")
    if not 1 <= k <= MAX_SEARCH_K:
        raise InvalidInputError(f"--k: 1 to {MAX_SEARCH_K}, not {k}")
    for option in ("allow_adapters", "exclude_adapters"):
        for name in question[option] or ():
            checked_name(flag(option), name)
    if allowed:
        registry = read_registry(store)
        for name in allowed:
            known_adapter(registry, name)


def _found(store: ObjectStore, key: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = get_json(store, key)
    except NotFoundError:
        return None
    return found
