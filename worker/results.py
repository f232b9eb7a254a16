"""From the engine's futures to result records."""

import math
from collections.abc import Sequence

from ramole_core.engine.engine import Engine
from ramole_core.engine.request import Generation, GenerationFuture, GenerationRequest
from ramole_core.errors import PromptError, RamoleError, UnavailableError
from ramole_core.jobs import AdapterUse, ErrorRecord, PromptRequest, PromptResult, Usage
from worker.routing import Routed


def submitted(engine: Engine, item: Routed) -> GenerationFuture:
    """The engine's future, or one that holds the error which kept the prompt from it."""
    future = GenerationFuture()
    if item.request is None:
        future.set_exception(item.error or PromptError("no_request", "nothing to run"))
        return future
    try:
        return engine.submit(item.request)
    except Exception as e:  # of this prompt; its neighbours go on
        future.set_exception(e)
        return future


def outage(futures: Sequence[GenerationFuture]) -> UnavailableError | None:
    """The first outage among the errors: those prompts are to be tried again, not failed."""
    errors = (f.exception() for f in futures if f.done() and not f.cancelled())
    return next((e for e in errors if isinstance(e, UnavailableError)), None)


def has_failed(future: GenerationFuture) -> bool:
    """True when the future ended without an answer."""
    return future.done() and (future.cancelled() or future.exception() is not None)


def result_of(item: Routed, future: GenerationFuture, cut: PromptError) -> PromptResult:
    """The record of a future that is done; `cut` is said of one that was cut short."""
    error = cut if future.cancelled() else future.exception()
    if future.unwanted and isinstance(error, PromptError):
        error = cut
    if isinstance(error, RamoleError):
        return failure(item.prompt, error)
    if error is not None:
        message = f"{type(error).__name__}: {str(error)[:300]}"
        return failure(item.prompt, PromptError("engine_error", message))
    assert item.request is not None
    return _answer(item, item.request, future.result())


def failure(prompt: PromptRequest, error: RamoleError) -> PromptResult:
    """The record of a prompt without an answer; what was wrong with its line goes first."""
    record = prompt.error or ErrorRecord(code=error.code, message=str(error))
    return PromptResult(index=prompt.index, id=prompt.id, error=record)


def _answer(item: Routed, request: GenerationRequest, answer: Generation) -> PromptResult:
    prompt = item.prompt
    if not all(map(math.isfinite, answer.weights)):
        return failure(prompt, PromptError("not_a_number", "the gate's weights overflowed"))
    uses = tuple(
        AdapterUse(
            name=expert.ref.name,
            version=expert.ref.version,
            similarity=None if expert.similarity is None else round(expert.similarity, 6),
            weight=round(weight, 6),
        )
        for expert, weight in zip(request.experts, answer.weights, strict=True)
    )
    usage = Usage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        extra_passes=answer.extra_passes,
        extra_tokens=answer.extra_tokens,
    )
    return PromptResult(
        index=prompt.index,
        id=prompt.id,
        text=answer.text,
        finish_reason=answer.finish_reason,
        adapters=uses,
        no_adapter=item.no_adapter,
        usage=usage,
    )
