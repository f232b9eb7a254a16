"""What the engine's forwards carried, seen from outside: their rows and their experts."""

from typing import Any

from torch import nn

from benchmarks.engine.race import Kind, Step
from benchmarks.engine.sizes import BATCH
from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.attach import MoleModel


class Meter:
    """Watches an attached model. Every forward looks up the embeddings of its rows once."""

    def __init__(self, mole: MoleModel) -> None:
        self._holder = mole.holder
        self._rows: list[int] = []
        self._experts: set[AdapterRef] = set()
        embeddings: Any = mole.model.get_input_embeddings()  # type: ignore[operator]
        embeddings.register_forward_pre_hook(self._note)

    def step(self) -> Step:
        """What was seen since the last call. A forward of more rows than a batch has prompts
        carried some prompt's own tokens: it prefilled."""
        rows, experts = self._rows, self._experts
        self._rows, self._experts = [], set()
        kind: Kind = "prefill" if any(n > BATCH for n in rows) else "decode"
        return Step(kind if rows else "other", sum(rows), len(experts))

    def _note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._rows.append(inputs[0].numel())
        self._experts.update(experts_of(self._holder.plan))


def experts_of(plan: Any) -> set[AdapterRef]:
    """The unique experts that a plan holds; none without a plan."""
    return set() if plan is None else {ref for s in plan.segments for ref in s.packed.experts}
