"""What became of an upload: `replies/<upload_id>.json`, created once."""

from typing import Literal

from pydantic import Field

from ramole_core import keys
from ramole_core.errors import NotFoundError
from ramole_core.jobs import Wire
from ramole_core.store.base import ObjectStore


class VerdictError(Wire):
    """Why an upload was refused; `reason` is the gate's stable word."""

    code: str
    reason: str
    message: str


class Verdict(Wire):
    """The answer. `version` is None when it was refused."""

    status: Literal["accepted", "unchanged", "refused"]
    name: str | None
    version: int | None
    warnings: tuple[str, ...] = Field(default=(), strict=False)
    error: VerdictError | None = None


def read_verdict(store: ObjectStore, upload_id: str) -> Verdict | None:
    """The answer to an upload, None while there is none."""
    try:
        return Verdict.model_validate_json(store.get(keys.reply(upload_id)))
    except NotFoundError:
        return None


def write_verdict(store: ObjectStore, upload_id: str, verdict: Verdict) -> Verdict:
    """The first answer stands: a duplicate that came late may have found the staging gone."""
    if store.create(keys.reply(upload_id), verdict.model_dump_json().encode()):
        return verdict
    return read_verdict(store, upload_id) or verdict
