"""What a producer asks of a worker beside jobs: for now, a search. The answer lies in the store."""

import logging
from typing import Any, Literal

from pydantic import Field

from ramole_core import keys
from ramole_core.errors import NotFoundError, RamoleError
from ramole_core.jobs import Name, Wire, checked_name
from ramole_core.retrieval.retriever import Query
from ramole_core.store import ObjectStore
from ramole_core.store.base import to_json
from worker.encoders import Encoders

logger = logging.getLogger(__name__)


class SearchRequest(Wire):
    """`requests/<id>.json`."""

    kind: Literal["search"]
    text: str = Field(min_length=1, max_length=1 << 20)
    k: int = Field(default=3, ge=1, le=1000)
    allow_adapters: tuple[Name, ...] | None = Field(default=None, strict=False)
    exclude_adapters: tuple[Name, ...] = Field(default=(), strict=False)


def answer(request_id: str, store: ObjectStore, encoders: Encoders) -> None:
    """Reads the request and writes its reply; a bad request gets an error as reply, and so does one
    that fails: nobody sends it again.

    A request that is gone was answered before or given up: nothing to do.
    """
    checked_name("request", request_id)
    try:
        data = store.get(keys.request(request_id))
    except NotFoundError:
        return
    try:
        found = _found(data, encoders)
    except Exception as e:
        refusal = {"adapters": [], "error": {"code": _code(e), "message": str(e)[:1000]}}
        store.put(keys.reply(request_id), to_json(refusal))
        return
    store.put(keys.reply(request_id), to_json({"adapters": found, "error": None}))


def _found(data: bytes, encoders: Encoders) -> list[dict[str, Any]]:
    request = SearchRequest.model_validate_json(data)
    query = Query(request.text, request.k, request.allow_adapters, request.exclude_adapters)
    return [
        {"name": m.ref.name, "version": m.ref.version, "similarity": round(m.similarity, 6)}
        for m in encoders.search([query])[0]
    ]


def _code(error: Exception) -> str:
    if isinstance(error, RamoleError):
        return error.code
    if isinstance(error, ValueError):
        return "invalid_input"
    logger.error("the search failed", exc_info=error)
    return RamoleError.code
