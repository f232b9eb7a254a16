"""The released samples and test prompts, what is special about them, and how hits are counted."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.report import Row
from ramole_core.retrieval.tuning import Samples, Split

TOPS: Final = (1, 3, 5, 8)
Tops = tuple[float, float, float, float]  # per cent at TOPS
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Hits:
    """Place of the own task among all, from 1, for each of Q prompts; a tie counts against it."""

    places: npt.NDArray[np.int64]  # (Q,)

    @classmethod
    def of(cls, scores: npt.NDArray[np.float32], own: npt.NDArray[np.int64]) -> "Hits":
        """From scores (Q, N) of the prompts against N adapters, and the own one's place (Q,)."""
        mine = np.take_along_axis(scores, own[:, None], axis=1)
        return cls((scores >= mine).sum(axis=1))

    def tops(self, among: Mask | None = None) -> Tops:
        """Per cent of the prompts (of those marked) whose own task is among the first k."""
        places = self.places if among is None else self.places[among]
        first, third, fifth, eighth = (100.0 * float(np.mean(places <= k)) for k in TOPS)
        return first, third, fifth, eighth


@dataclass(frozen=True)
class TestSet:
    """The two files of a release."""

    samples: Samples  # adapter -> its sample prompts
    prompts: list[str]  # Q
    tasks: list[str]  # Q, the adapter that was made for each prompt

    @cached_property
    def own(self) -> npt.NDArray[np.int64]:
        """Place of each prompt's own adapter (Q,)."""
        place = {name: i for i, name in enumerate(self.samples)}
        return np.array([place[task] for task in self.tasks])

    @cached_property
    def is_copy(self) -> Mask:
        """Which test prompts are also a sample of some adapter (Q,)."""
        known = {text.strip() for texts in self.samples.values() for text in texts}
        return np.array([prompt.strip() in known for prompt in self.prompts])

    def hits(self, scores: npt.NDArray[np.float32]) -> Hits:
        """From scores (Q, N), adapters in the order of `samples`."""
        return Hits.of(scores, self.own)

    def without_copies(self, split: Split) -> Split:
        """The split without samples that are also test prompts."""
        tested = {prompt.strip() for prompt in self.prompts}
        return Split(
            {
                name: tuple(i for i in places if self.samples[name][i].strip() not in tested)
                for name, places in split.training.items()
            }
        )

    def facts(self) -> list[Row]:
        """What no encoder can change: copies, and prompts that stand under two tasks."""
        owners = defaultdict(set)
        for name, texts in self.samples.items():
            for text in texts:
                owners[text.strip()].add(name)
        copied = [
            task not in owners[prompt.strip()]
            for prompt, task in zip(self.prompts, self.tasks, strict=True)
            if prompt.strip() in owners
        ]
        return [
            Row("test_prompts", float(len(self.prompts)), "prompts"),
            Row("test_prompts_that_are_samples", float(len(copied)), "prompts"),
            Row("of_these_under_another_task", float(sum(copied)), "prompts"),
            Row("ceiling_top1", self._ceiling(), "%"),
        ]

    def _ceiling(self) -> float:
        """Top-1 of a retriever that knew every answer, but must answer equal texts alike: test
        prompts and samples of one text get the task that most of the test prompts have."""
        tasks: dict[str, Counter[str]] = defaultdict(Counter)
        for prompt, task in zip(self.prompts, self.tasks, strict=True):
            tasks[prompt.strip()][task] += 1
        return 100.0 * sum(max(c.values()) for c in tasks.values()) / len(self.prompts)


def load(folder: Path) -> TestSet:
    """Reads `adapter_samples.jsonl` and `prompts.jsonl`."""
    adapters = _lines(folder / "adapter_samples.jsonl")
    prompts = _lines(folder / "prompts.jsonl")
    return TestSet(
        samples={line["adapter"]: line["samples"] for line in adapters},
        prompts=[line["inputs"] for line in prompts],
        tasks=[line["task"] for line in prompts],
    )


def with_tops(
    name: str, tops: Sequence[float], targets: Sequence[float] | None = None
) -> list[Row]:
    """Rows `<name>_top1` … `<name>_top8`."""
    wanted: Sequence[float | None] = targets or [None] * len(TOPS)
    return [
        Row(f"{name}_top{k}", value, "%", target)
        for k, value, target in zip(TOPS, tops, wanted, strict=True)
    ]


def compact(rows: Sequence[Row]) -> str:
    """A table with one line for each method and a column for each k."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        name, _, k = row.name.rpartition("_top")
        if name and k.isdecimal() and int(k) in TOPS:
            found[name][int(k)] = row.value
    lines = [f"{'top-k accuracy, %':34}" + "".join(f"{k:>8}" for k in TOPS)]
    lines += [
        f"{name:34}" + "".join(f"{tops.get(k, float('nan')):8.2f}" for k in TOPS)
        for name, tops in found.items()
        if len(tops) == len(TOPS)
    ]
    return "\n".join(lines) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
