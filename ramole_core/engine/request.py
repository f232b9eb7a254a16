"""What the engine is asked and what it answers. The interface that lasts."""

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.choice import CascadeRule
from ramole_core.errors import PromptError
from ramole_core.mole.gates import TAU, Mix


@dataclass(frozen=True)
class Expert:
    """One adapter of one prompt: found by retrieval (`similarity`) or named (`weight`)."""

    ref: AdapterRef
    similarity: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, its experts and how it is decoded.

    Exactly one of `prompt` and `messages` ((role, content) pairs) is given. No experts means the
    base model. `temperature` 0 is greedy. `tau` is the temperature of the retrieval prior.
    `rule` is that of gate `cascade`; without one nothing is known of how sure a sure answer is,
    and the gate is `mole`. `wants_confidence` asks for the answer's confidence, which gate
    `cascade` computes anyway. A higher `priority` is answered earlier: engine/line.py. Beside one
    that wants to be `alone` nobody runs. The engine's watcher is told the `tag`s of what runs.
    Raises PromptError when the parts do not go together: codes `bad_request`, `bad_gate`,
    `no_router`, `bad_weight`, `bad_similarity`, `duplicate_expert`.
    """

    prompt: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    experts: tuple[Expert, ...] = ()
    gate: str = "mole"  # jobs.Gate, or `weights`
    router: str | None = None
    tau: float = TAU
    rule: CascadeRule | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    on_too_long: Literal["fail", "truncate"] = "fail"
    wants_confidence: bool = False
    priority: int = 0
    alone: bool = False
    tag: Hashable = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise PromptError("bad_request", "give either a prompt or messages")
        if self.max_new_tokens < 1:
            raise PromptError("bad_request", f"max_new_tokens={self.max_new_tokens}: at least 1")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise PromptError(
                "bad_request",
                f"temperature={self.temperature} (at least 0), top_p={self.top_p} (0 to 1)",
            )
        if not 0 <= self.seed < 1 << 63:
            raise PromptError("bad_request", f"seed={self.seed}: 0 to 2^63 - 1")
        if not all(self.stop):
            raise PromptError("bad_request", "a stop string must not be empty")
        self.mix()

    @property
    def cascades(self) -> bool:
        """True when a second pass may follow the first: engine/cascade.py."""
        return self.gate == "cascade" and self.rule is not None and len(self.experts) > 1

    def mix(self) -> Mix:
        """The gate's view of this request. Raises PromptError."""
        return Mix(
            gate=self.gate,
            experts=tuple(expert.ref for expert in self.experts),
            similarities=tuple(expert.similarity for expert in self.experts),
            weights=tuple(expert.weight for expert in self.experts),
            router=self.router,
            tau=self.tau,
        )


@dataclass(frozen=True)
class Generation:
    """An answer. `text` excludes the stop string and the end-of-text token.

    `confidence` is the mean natural log-probability of the generated tokens, the end-of-text token
    included, in the model's own distribution (before temperature and top_p); None: nobody asked.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int  # generated tokens, the end-of-text token included
    weights: tuple[float, ...]  # aligned with the request's experts: mean gate weight
    confidence: float | None = None
    extra_passes: int = 0  # further answers that gate `cascade` had decoded for this one
    extra_tokens: int = 0  # generated tokens of all answers but this one


class GenerationFuture(Future[Generation]):
    """What `Engine.submit` returns. `cancel` works until the prompt's batch begins, and under gate
    `cascade` until there is an answer."""

    unwanted = False  # the engine looks before every step

    def end(self) -> None:
        """Cancels it; a prompt that is being decoded fails (`cancelled`) before the next step."""
        self.unwanted = True
        self.cancel()
