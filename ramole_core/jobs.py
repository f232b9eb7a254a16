"""The wire and file formats of a job: requests in, results out, and the manifest between.

Every model refuses unknown keys and wrong types, and its `model_dump_json` /
`model_validate_json` is the only serialisation. docs/formats.md describes each field.
"""

import datetime
import re
import secrets
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ramole_core.errors import InvalidInputError

MAX_K: Final = 16
MAX_PROMPT_BYTES: Final = 1 << 20
MAX_SHARD_SIZE: Final = 4096
MAX_SHARDS: Final = 100_000

Gate = Literal["mole", "cascade", "mole-plain", "selection", "mixture", "fusion"]
Priority = Literal["low", "normal", "high"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(kind: str, value: str) -> str:
    """Returns `value` when it may name an adapter or a job (it becomes part of an object key)."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):  # messages hold anything
        raise InvalidInputError(
            f"{kind} {str(value)[:120]!r}: use 1 to 100 letters, digits, '.', '_' or '-', "
            "and begin with a letter or digit"
        )
    return value


def _wire_name(value: str) -> str:
    try:
        return checked_name("name", value)
    except InvalidInputError as e:
        raise ValueError(str(e)) from e


Name = Annotated[str, AfterValidator(_wire_name)]


class Wire(BaseModel):
    """Base of every message and file record: frozen, strict types, unknown keys are errors.

    Lists from strangers are `fail_fast`: an error each would take a thousand times their bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AdapterChoice(Wire):
    """One adapter named by the caller, with its weight (no retrieval)."""

    name: Name
    version: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, ge=-10.0, le=10.0)


class PromptOptions(Wire):
    """How one prompt is answered. What a prompt leaves out, its job says; then the default."""

    k: int = Field(default=3, ge=1, le=MAX_K)
    gate: Gate = "cascade"
    min_similarity: float | None = Field(default=None, ge=-1.0, le=1.0)
    on_no_adapter: Literal["base", "fail"] = "base"
    allow_adapters: tuple[Name, ...] | None = Field(default=None, strict=False, fail_fast=True)
    exclude_adapters: tuple[Name, ...] = Field(default=(), strict=False, fail_fast=True)
    adapters: tuple[AdapterChoice, ...] | None = Field(
        default=None, strict=False, fail_fast=True, max_length=MAX_K
    )
    max_new_tokens: int = Field(default=128, ge=1, le=1 << 20)
    temperature: float = Field(default=0.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), strict=False, fail_fast=True, max_length=16
    )
    on_too_long: Literal["fail", "truncate"] = "fail"


class JobOptions(PromptOptions):
    """What a job asks for: the prompts' defaults and the job's own settings."""

    priority: Priority = "normal"
    shard_size: int = Field(default=256, ge=1, le=MAX_SHARD_SIZE)
    deadline: str | None = None

    @model_validator(mode="after")
    def _deadline_has_a_zone(self) -> "JobOptions":
        if self.deadline is not None and parse_time(self.deadline).tzinfo is None:
            raise ValueError("deadline needs a time zone, for example 2026-01-31T06:00:00+00:00")
        return self


class Message(Wire):
    """One turn of a conversation, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


class ErrorRecord(Wire):
    """Why a prompt has no answer."""

    code: str
    message: str


class PromptRequest(Wire):
    """One line of a shard: a prompt with its own options, or the error its input line had."""

    index: int = Field(ge=0)
    id: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, strict=False, fail_fast=True)
    options: dict[str, Any] = Field(default_factory=dict)
    error: ErrorRecord | None = None

    def options_over(self, defaults: PromptOptions) -> PromptOptions:
        """The job's options with this prompt's own on top."""
        if not self.options:
            return defaults
        fields = {name: getattr(defaults, name) for name in PromptOptions.model_fields}
        return PromptOptions.model_validate(fields | self.options)

    def query(self) -> str:
        """What retrieval embeds: the prompt, or the last user message."""
        if self.prompt is not None:
            return self.prompt
        turns = self.messages or ()
        return next((m.content for m in reversed(turns) if m.role == "user"), "")


class AdapterUse(Wire):
    """One adapter that made an answer. `weight` is the gate's mean over layers and tokens."""

    name: str
    version: int
    similarity: float | None
    weight: float


class Usage(Wire):
    """Token counts of one answer; `extra_…`: what gate `cascade` spent on its second pass."""

    prompt_tokens: int
    completion_tokens: int
    extra_passes: int = 0
    extra_tokens: int = 0


class PromptResult(Wire):
    """One line of an output: the answer and the adapters that made it, or the error.

    `no_adapter` tells the base model's answer where retrieval found no adapter that applies from
    one that was asked for.
    """

    index: int
    id: str | None = None
    text: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    adapters: tuple[AdapterUse, ...] = Field(default=(), strict=False)
    no_adapter: bool = False
    usage: Usage | None = None
    error: ErrorRecord | None = None


class Pins(Wire):
    """What an answer depends on, fixed at submission so that it can be computed again."""

    base: str
    encoder: str
    router: str | None
    registry: int = Field(ge=0)


class Manifest(Wire):
    """`jobs/<job_id>/manifest.json`, written last: no manifest, no job."""

    job_id: Name
    created_at: str
    submission: str
    content_sha256: str
    options: JobOptions
    pins: Pins
    num_prompts: int = Field(ge=0, le=MAX_SHARDS * MAX_SHARD_SIZE)
    num_bad_lines: int = Field(ge=0)
    num_shards: int = Field(ge=0, le=MAX_SHARDS)

    def shard_names(self) -> list[str]:
        """All shard names of the job, in order."""
        return [shard_name(i) for i in range(self.num_shards)]


class JobState(StrEnum):
    """Derived from what lies in the store, never stored."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """True when no further result will come."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Finished(Wire):
    """`jobs/<job_id>/finished.json`, created once when every output exists."""

    finished_at: str
    num_ok: int
    num_failed: int

    def state(self) -> JobState:
        """The final state these counts mean."""
        if self.num_failed == 0:
            return JobState.COMPLETED
        return JobState.COMPLETED_WITH_FAILURES if self.num_ok else JobState.FAILED


def shard_name(number: int) -> str:
    """`00000`, `00001`, …: sorts as text in the order of the prompts."""
    return f"{number:05d}"


def new_job_id(now: datetime.datetime) -> str:
    """A fresh id that sorts by time, e.g. `20260131-060000-123-9f2c4e`."""
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(3)}"


def utc_now() -> datetime.datetime:
    """The current time with its zone (UTC)."""
    return datetime.datetime.now(datetime.UTC)


def parse_time(text: str) -> datetime.datetime:
    """Reads an ISO 8601 time. Raises ValueError."""
    return datetime.datetime.fromisoformat(text)
