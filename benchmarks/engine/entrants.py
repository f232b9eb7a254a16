"""The engine as an entrant: submit a queue, step until everything is answered."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from benchmarks.engine.meter import Meter
from benchmarks.engine.race import Step
from ramole_core.engine.engine import Engine
from ramole_core.engine.request import Expert, Generation, GenerationRequest

CHECKED: Final = 8  # requests


class EngineEntrant:
    """Answers the same requests in every run, all submitted before its first step.

    `answers` are those of the last run. What is loaded once and stays (adapters, the router) is
    loaded before the first.
    """

    def __init__(
        self,
        engine: Engine,
        meter: Meter,
        requests: Sequence[GenerationRequest],
        warm: bool = True,
    ) -> None:
        self.engine = engine
        self.meter = meter
        self.requests = list(requests)
        self.num_tokens = sum(request.max_new_tokens for request in requests)
        self.answers: list[Generation] = []
        if warm:
            self._warm_up()

    def run(self) -> Iterator[Step]:
        """One engine step at a time. Packs of an earlier run are forgotten: a queue has new sets
        of experts all the time."""
        self.engine.bank._packs.clear()
        futures = [self.engine.submit(request) for request in self.requests]
        more = True
        while more:
            more = self.engine.step()
            yield self.meter.step()
        self.answers = [future.result(timeout=0) for future in futures]
        for request, answer in zip(self.requests, self.answers, strict=True):
            assert answer.completion_tokens == request.max_new_tokens, "an answer ended early"

    def facts(self) -> dict[str, float]:
        """How often adapters were loaded, and how often somebody had to wait for that."""
        return {"loads": self.engine.bank.num_loads, "waits": self.engine.bank.num_waits}

    def close(self) -> None:
        """Stops the engine."""
        self.engine.stop()

    def _warm_up(self) -> None:
        """One token for a prompt of one token, until every adapter of the requests was used."""
        known: set[Expert | None] = set()
        futures = []
        for request in self.requests:
            wanted: set[Expert | None] = {*request.experts} or {None}
            if not wanted <= known:
                known |= wanted
                short = replace(request, prompt="t0", max_new_tokens=1)
                futures.append(self.engine.submit(short))
        while self.engine.step():
            pass
        for future in futures:
            future.result(timeout=0)
        self.meter.step()  # forgets what it saw


def check_agreement(one: EngineEntrant, other: EngineEntrant, exact: bool) -> None:
    """Runs both once, two tokens for the first requests: the same ones, equally likely.
    Where formats are coarser than float32 (not `exact`), other tokens may win now and then."""
    first, second = _begin(one), _begin(other)
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.text == b.text]
    assert len(pairs) >= len(first) * (1 if exact else 0.5), "the two formulas disagree"
    worst = max(abs((a.confidence or 0.0) - (b.confidence or 0.0)) for a, b in pairs)
    assert worst <= (1e-3 if exact else 5e-2), f"the two formulas disagree by {worst}"


def _begin(entrant: EngineEntrant) -> list[Generation]:
    requests = [
        replace(r, max_new_tokens=2, wants_confidence=True) for r in entrant.requests[:CHECKED]
    ]
    short = EngineEntrant(entrant.engine, entrant.meter, requests, warm=False)
    for _ in short.run():
        pass
    return short.answers
