"""The engine in this process, asked each question once.

Guarantees: every answer comes from `Engine` in float32, whose greedy answers do not depend on the
neighbours, so a question asked before is answered from memory: this is the table of single-adapter
answers that Selection, Perfect selection, the oracle and the cascade's candidates share. Every
answer comes with its confidence, so that the same answer serves gates with and without a cascade.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from benchmarks.method.cases import ZooSource
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.backend import Backend
from ramole_core.engine.choice import CascadeRule
from ramole_core.engine.engine import Engine
from ramole_core.engine.factory import build_engine
from ramole_core.engine.request import Expert, Generation, GenerationRequest
from ramole_core.mole.gates import TAU
from ramole_core.mole.router import RouterWeights
from ramole_core.settings import Settings
from ramole_core.zoo.evaluate import MAX_NEW_TOKENS

Say = Callable[[str], None]
BATCH_SIZE: Final = 32
SUBMITTED_AT_ONCE: Final = 512  # the scheduler sorts whatever waits


class Routers:
    """A RouterSource over memory."""

    def __init__(self) -> None:
        self.versions: dict[str, RouterWeights] = {}

    def load_router(self, version: str) -> RouterWeights:
        """See RouterSource."""
        return self.versions[version]


class Answers:
    """See the module's docstring."""

    def __init__(self, engine: Engine, routers: Routers) -> None:
        self.engine = engine
        self.routers = routers
        self._known: dict[GenerationRequest, Generation] = {}

    @classmethod
    def over_zoo(cls, num_adapters: int) -> "Answers":
        """The zoo's base model and adapters on the CPU."""
        settings = Settings(
            device="cpu",
            dtype="float32",
            batch_size=BATCH_SIZE,
            batch_interval_seconds=0.0,
            bank_size=num_adapters,
        )
        routers = Routers()
        return cls(build_engine(settings, ZooSource(), routers), routers)

    def __len__(self) -> int:
        return len(self._known)

    def ask(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """The answers in the order of `requests`. A prompt that fails raises its PromptError."""
        missing = [request for request in dict.fromkeys(requests) if request not in self._known]
        for start in range(0, len(missing), SUBMITTED_AT_ONCE):
            self._run(missing[start : start + SUBMITTED_AT_ONCE])
        return [self._known[request] for request in requests]

    @contextmanager
    def own_attention(self) -> Iterator[None]:
        """The base model has its own attention inside the block, for what the engine does not run:
        training and hidden states. Nothing may be asked there."""
        runner = self.engine.runner
        runner.close()
        try:
            yield
        finally:
            runner.backend = Backend.install(self.engine.base.model)

    def forget(self, router: str) -> None:
        """Drops a router and its answers: no later question names it."""
        del self.routers.versions[router]
        self._known = {q: a for q, a in self._known.items() if q.router != router}

    def _run(self, requests: Sequence[GenerationRequest]) -> None:
        futures = [self.engine.submit(request) for request in requests]
        while self.engine.step():
            pass
        for request, future in zip(requests, futures, strict=True):
            self._known[request] = future.result()


def question(
    prompt: str,
    experts: Sequence[Expert] = (),
    gate: str = "mole",
    tau: float = TAU,
    router: str | None = None,
    rule: CascadeRule | None = None,
) -> GenerationRequest:
    """One request of the benchmark. One expert alone has weight 1 under every gate (a softmax of
    one score, a mean of one, a renormalised weight), as the best one has under `selection`: such
    questions are all the same. `experts` stand best first. `rule`: of gate `cascade`."""
    if len(experts) == 1 or (experts and gate == "selection"):
        return single(prompt, experts[0].ref)
    return GenerationRequest(
        prompt,
        experts=tuple(experts),
        gate=gate,
        tau=tau,
        router=router,
        rule=rule if gate == "cascade" else None,
        max_new_tokens=MAX_NEW_TOKENS,
        wants_confidence=True,
    )


def single(prompt: str, ref: AdapterRef) -> GenerationRequest:
    """The prompt with one adapter."""
    return GenerationRequest(
        prompt,
        experts=(Expert(ref),),
        gate="selection",
        max_new_tokens=MAX_NEW_TOKENS,
        wants_confidence=True,
    )


def progress(who: str) -> Say:
    """A function that writes lines with the elapsed seconds and `who` to stderr."""
    began = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - began:5.0f} s, {who}] {line}\n")
        sys.stderr.flush()

    return say
