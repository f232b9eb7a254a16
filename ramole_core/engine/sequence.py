"""One prompt on its way through the engine: lists and numbers, no tensors."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.request import Generation, GenerationRequest
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
    future: "Future[Generation]" = field(default_factory=Future)
    output_ids: list[int] = field(default_factory=list)
    started: bool = False  # the future can no longer be cancelled
    failed_alone: bool = False  # broke a batch of its own: the next such error is its fault

    @cached_property
    def adapters(self) -> tuple[AdapterRef, ...]:
        """The adapters that must be on the device: experts with an effect."""
        return tuple(self.mix.experts[i] for i in self.mix.active())

    @property
    def router(self) -> str | None:
        """The router version this prompt needs, if it needs one."""
        return self.mix.router if self.mix.routed else None

    @property
    def num_tokens(self) -> int:
        """Most tokens (prompt and answer) this prompt can come to."""
        return len(self.prompt_ids) + self.max_new_tokens

    def restart(self) -> None:
        """Forgets the answer so far; the same seed gives the same answer again."""
        self.output_ids.clear()

    def append(self, token: int) -> Literal["stop", "length"] | None:
        """Adds a generated token; the reason when it was the last one."""
        self.output_ids.append(token)
        if self.stop_rule.ends(self.output_ids):
            return "stop"
        return "length" if len(self.output_ids) >= self.max_new_tokens else None

    def generation(
        self, reason: Literal["stop", "length"], weights: tuple[float, ...]
    ) -> Generation:
        """The answer as it is returned."""
        return Generation(
            text=self.stop_rule.text(self.output_ids),
            finish_reason=reason,
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=len(self.output_ids),
            weights=weights,
        )
