"""The zoo as a test: prompts with their one right answer, adapters with their samples.

Everything is taken from the zoo's own files, so that the benchmark follows whatever zoo is
installed. The `masked` pool lacks the adapter that was trained on the prompt's own task.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ramole_core import zoo
from ramole_core.adapters.loading import load_lora
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights
from ramole_core.zoo.tasks import TASKS, train_wordings

Pool = Literal["full", "masked"]  # which adapters may answer
POOLS: Final[tuple[Pool, Pool]] = ("full", "masked")


@dataclass(frozen=True)
class Case:
    """One test prompt. `seen_wording`: training and the samples use its wording, on other words."""

    prompt: str
    target: str
    adapter: str
    family: str
    seen_wording: bool


@dataclass(frozen=True)
class Zoo:
    """The adapters (sorted by name), their families and samples, and the test prompts."""

    adapters: tuple[str, ...]
    families: dict[str, str]  # adapter -> family
    samples: dict[str, tuple[str, ...]]  # adapter -> prompts
    cases: tuple[Case, ...]

    @classmethod
    def load(cls, path: Path, per_task: int | None = None) -> "Zoo":
        """The installed zoo with the prompts of `path`; `per_task`: at most so many a task."""
        adapters = tuple(zoo.adapter_names())
        families = {task.name: task.family for task in TASKS}
        samples = {name: tuple(_lines(zoo.samples_path(name))) for name in adapters}
        seen = {task.name: set(train_wordings(task)) for task in TASKS}
        cases = [_case(record, seen) for record in _lines(path)]
        if per_task is not None:
            cases = _thinned(cases, per_task)
        return cls(adapters, families, samples, tuple(cases))

    def allowed(self, case: Case, pool: Pool) -> frozenset[AdapterRef]:
        """The adapters that may answer `case`."""
        masked = case.adapter if pool == "masked" else None
        return frozenset(ref_of(name) for name in self.adapters if name != masked)

    def is_right(self, case: Case, adapter: str, pool: Pool) -> bool:
        """Whether `adapter` is the one to choose: the own one; when masked, one of its family."""
        if pool == "full":
            return adapter == case.adapter
        return self.families[adapter] == case.family

    def halves(self, seed: int) -> tuple[frozenset[str], frozenset[str]]:
        """Two complementary halves of the adapters, every family split as evenly as it can be."""
        rng = random.Random(seed)
        first: set[str] = set()
        for number, family in enumerate(sorted(set(self.families.values()))):
            members = [name for name in self.adapters if self.families[name] == family]
            rng.shuffle(members)
            # Odd families give their spare member to either half in turn.
            first.update(members[: (len(members) + number % 2) // 2])
        return frozenset(first), frozenset(self.adapters) - first


class ZooSource:
    """An AdapterSource over the zoo's own files, read as the worker reads them."""

    def load(self, ref: AdapterRef) -> LoraWeights:
        """See AdapterSource."""
        return load_lora(zoo.adapter_path(ref.name))


def ref_of(name: str) -> AdapterRef:
    """The zoo's adapters have one version each."""
    return AdapterRef(name, 1)


def _case(record: dict[str, Any], seen: dict[str, set[str]]) -> Case:
    return Case(
        prompt=record["prompt"],
        target=record["target"],
        adapter=record["adapter"],
        family=record["family"],
        seen_wording=record["wording"] in seen[record["adapter"]],
    )


def _thinned(cases: Sequence[Case], per_task: int) -> list[Case]:
    """Evenly spaced cases of each task, so that both kinds of wording stay."""
    kept = []
    for name in dict.fromkeys(case.adapter for case in cases):
        mine = [case for case in cases if case.adapter == name]
        kept += mine[:: -(-len(mine) // per_task)]
    return kept


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
