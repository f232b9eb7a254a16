"""What each adapter alone answers, by the engine, without a worker around it."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.engine import Engine
from ramole_core.engine.request import Expert, Generation, GenerationRequest
from ramole_core.errors import PromptError
from ramole_core.retrieval.affinity import MAX_NEW_TOKENS, Said
from worker.train.base import Workbench
from worker.train.context import TrainContext

SUBMITTED_AT_ONCE: Final = 512  # the scheduler sorts whatever waits


class SoloAnswers:
    """An engine in this thread over the adapters `refs`."""

    def __init__(self, bench: Workbench, context: TrainContext, refs: Sequence[AdapterRef]) -> None:
        settings = replace(context.settings, batch_interval_seconds=0.0)  # all is here at once
        self._engine = Engine(bench.base, bench.mole, bench.bank, settings)
        self._progress = context.progress
        self._refs = refs

    def answer(self, pairs: Sequence[tuple[int, str]]) -> list[Said | None]:
        """For (place of the adapter, prompt) pairs what the adapter alone says, greedily and at
        most MAX_NEW_TOKENS long; None where it cannot. Raises UnavailableError on an outage."""
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])  # few adapters in a batch
        said: list[Said | None] = [None] * len(pairs)
        for start in range(0, len(order), SUBMITTED_AT_ONCE):
            rows = order[start : start + SUBMITTED_AT_ONCE]
            futures = [self._engine.submit(self._request(*pairs[row])) for row in rows]
            while not all(future.done() for future in futures):
                self._engine.step()
            for row, future in zip(rows, futures, strict=True):
                said[row] = _said(future)
            self._progress.step(start + len(rows), len(order), "adapters answer samples")
        return said

    def _request(self, place: int, prompt: str) -> GenerationRequest:
        return GenerationRequest(
            prompt,
            experts=(Expert(self._refs[place], weight=1.0),),
            gate="weights",
            max_new_tokens=MAX_NEW_TOKENS,
            on_too_long="truncate",
            wants_confidence=True,
        )


def _said(future: "Future[Generation]") -> Said | None:
    try:
        found = future.result()
    except PromptError:
        return None
    assert found.confidence is not None
    return Said(found.text, found.confidence)
