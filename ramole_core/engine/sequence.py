"""One prompt on its way through the engine: lists and numbers, no tensors."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.request import Generation, GenerationFuture, GenerationRequest
from ramole_core.engine.sampling import generator_of
from ramole_core.engine.stopping import StopRule
from ramole_core.mole.gates import Mix


@dataclass(eq=False)
class Sequence:
    """A prompt, its answer so far, and the future that waits for it."""

    request: GenerationRequest
    prompt_ids: list[int]
    max_new_tokens: int  # the request's, cut to what the context leaves
    stop_rule: StopRule
    arrived_at: float  # the engine's clock
    mix: Mix
    future: GenerationFuture = field(default_factory=GenerationFuture)
    output_ids: list[int] = field(default_factory=list)
    started: bool = False  # the future can no longer be cancelled
    failed_alone: bool = False  # broke a batch of its own: the next such error is its fault
    is_second_pass: bool = False  # its prompt was answered once already: gate `cascade`
    log_probability: float = 0.0  # of the answer so far, where somebody wants its confidence
    slot: int = -1  # its place in the cache, while it runs
    num_cached: int = 0  # tokens of prompt and answer whose keys and values lie there
    generator: torch.Generator | None = None  # of a sampled answer
    weight_sum: list[float] = field(default_factory=list)  # of its active experts, by token
    num_weights: int = 0

    @cached_property
    def adapters(self) -> tuple[AdapterRef, ...]:
        """The adapters that must be on the device: experts with an effect."""
        return tuple(self.mix.experts[i] for i in self.mix.active())

    @property
    def priority(self) -> int:
        """Whose turn it is: the higher, the earlier."""
        return self.request.priority

    @property
    def router(self) -> str | None:
        """The router version this prompt needs, if it needs one."""
        return self.mix.router if self.mix.routed else None

    @property
    def num_tokens(self) -> int:
        """Most tokens (prompt and answer) this prompt can come to."""
        return len(self.prompt_ids) + self.max_new_tokens

    @property
    def wants_confidence(self) -> bool:
        """True when the log-probabilities of this prompt's tokens are to be computed."""
        return self.request.wants_confidence or self.request.cascades

    def alone(self, place: int) -> "Sequence":
        """This prompt once more, from its beginning and at its place in the line, answered by
        its expert at `place` alone and with a confidence."""
        expert = replace(self.request.experts[place], weight=1.0)
        request = replace(self.request, gate="weights", experts=(expert,), wants_confidence=True)
        return Sequence(
            request=request,
            prompt_ids=self.prompt_ids,
            max_new_tokens=self.max_new_tokens,
            stop_rule=self.stop_rule,
            arrived_at=self.arrived_at,
            mix=request.mix(),
            is_second_pass=True,
        )

    def restart(self) -> None:
        """Forgets the answer so far; the same seed gives the same answer again."""
        self.output_ids.clear()
        self.weight_sum.clear()
        self.log_probability, self.num_cached, self.num_weights = 0.0, 0, 0
        self.generator = generator_of(self.request)

    def append(
        self,
        token: int,
        log_probability: float | None = None,
        weights: tuple[float, ...] | None = None,
    ) -> Literal["stop", "length"] | None:
        """Adds a generated token, with the weights of the active experts where the router decides;
        the reason when it was the last one."""
        self.output_ids.append(token)
        if weights is not None:
            total = self.weight_sum or [0.0] * len(weights)
            self.weight_sum = [a + b for a, b in zip(total, weights, strict=True)]
            self.num_weights += 1
        self.log_probability += log_probability or 0.0
        if self.stop_rule.ends(self.output_ids):
            return "stop"
        return "length" if len(self.output_ids) >= self.max_new_tokens else None

    @property
    def weights(self) -> tuple[float, ...]:
        """The mean gate weight of each of the request's experts so far (inactive ones: 0)."""
        if not self.num_weights:
            return tuple(self.mix.static_weights())
        means = [value / self.num_weights for value in self.weight_sum]
        active = dict(zip(self.adapters, means, strict=True))
        return tuple(active.get(ref, 0.0) for ref in self.mix.experts)

    def generation(self, reason: Literal["stop", "length"]) -> Generation:
        """The answer as it is returned."""
        return Generation(
            text=self.stop_rule.text(self.output_ids),
            finish_reason=reason,
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=len(self.output_ids),
            weights=self.weights,
            confidence=(
                self.log_probability / len(self.output_ids) if self.wants_confidence else None
            ),
        )
