"""Exact match, kept for each prompt, and what is computed from it.

Dims: N test prompts, T tasks, S seeds. Every mean is a mean over tasks of the tasks' means, every
interval a bootstrap over tasks: prompts of one task are no independent draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.method.cases import Case, Pool, Zoo
from ramole_core.engine.request import Generation, GenerationRequest

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
RESAMPLES: Final = 10_000
UNIFORM_GATES: Final = ("mixture", "fusion")

# What is reported. iid: every adapter may answer, and the prompt has a wording of the samples, with
# another word; wordings: every adapter may answer, and nobody trained with the wording or retrieves
# by it; masked: the prompt's own adapter is left out, all prompts.
Setting = Literal["iid", "wordings", "masked"]
SETTINGS: Final[tuple[Setting, ...]] = ("iid", "wordings", "masked")
SETTINGS_OF: Final[dict[Pool, tuple[Setting, ...]]] = {
    "full": ("iid", "wordings"),
    "masked": ("masked",),
}


@dataclass(frozen=True, order=True)
class Key:
    """One line of the table. `retriever` is empty where nothing is retrieved."""

    method: str
    retriever: str
    setting: Setting
    k: int

    def __str__(self) -> str:
        parts = (self.method, self.retriever, self.setting, f"k{self.k}")
        return "_".join(part for part in parts if part)


@dataclass(frozen=True, eq=False)
class Marks:
    """One seed's result of one method in one setting, one value for each prompt."""

    right: Floats  # (N,) 1 for the exact answer; the mean of both halves' routers where trained
    chosen: Floats | None = None  # (N,) 1 when the largest weight lies on a right adapter
    seen: Floats | None = None  # (N,) `right` by the router that was trained on the prompt's task
    unseen: Floats | None = None  # (N,) `right` by the router that was not
    second_pass: Floats | None = None  # (N,) 1 when the cascade asked the experts one by one
    extra_tokens: Floats | None = None  # (N,) tokens of that pass, in answers' lengths


def marks_of(
    zoo: Zoo,
    pool: Pool,
    requests: Sequence[GenerationRequest],
    answers: Sequence[Generation],
) -> Marks:
    """Compares answers with targets, and each prompt's largest weight with the right adapters."""
    triples = list(zip(zoo.cases, requests, answers, strict=True))
    right = [answer.text == case.target for case, _, answer in triples]
    gates = {request.gate for request in requests if len(request.experts) > 1}
    chosen = None
    if all(request.experts for request in requests) and not gates & {*UNIFORM_GATES}:
        chosen = floats([_chosen(zoo, pool, *triple) for triple in triples])
    return Marks(floats(right), chosen)


def both_halves(first: Marks, second: Marks, in_first: Bools) -> Marks:
    """The mean of two routers; `in_first` (N,): the first was trained on the prompt's task."""
    assert first.chosen is not None and second.chosen is not None
    return Marks(
        right=(first.right + second.right) / 2,
        chosen=(first.chosen + second.chosen) / 2,
        seen=np.where(in_first, first.right, second.right),
        unseen=np.where(in_first, second.right, first.right),
        second_pass=_mean(first.second_pass, second.second_pass),
        extra_tokens=_mean(first.extra_tokens, second.extra_tokens),
    )


def _mean(one: Floats | None, other: Floats | None) -> Floats | None:
    return None if one is None or other is None else (one + other) / 2


@dataclass
class Board:
    """All results: for each line of the table one Marks a seed (one alone: nothing is random).

    Marks hold every prompt of their pool; the settings of one pool share them, and every number
    below counts the prompts of the key's own setting.
    """

    zoo: Zoo
    marks: dict[Key, list[Marks]] = field(default_factory=dict)

    def add(self, method: str, retriever: str, pool: Pool, k: int, marks: Marks) -> list[Key]:
        """Adds the next seed's result; the keys that it belongs to."""
        keys = [Key(method, retriever, setting, k) for setting in SETTINGS_OF[pool]]
        for key in keys:
            self.marks.setdefault(key, []).append(marks)
        return keys

    def tasks(self, key: Key, part: str = "right", where: Bools | None = None) -> Floats:
        """(T,) per cent by task, mean over seeds. `part` names a field of Marks, `where` (N,)
        picks among the setting's prompts."""
        values = [getattr(marks, part) for marks in self.marks[key]]
        counted = self.prompts(key.setting)
        counted = counted if where is None else counted & where
        return by_task(self.zoo.cases, np.mean(values, axis=0), counted)

    def mean(self, key: Key, part: str = "right", where: Bools | None = None) -> float:
        """Per cent."""
        return float(self.tasks(key, part, where).mean())

    def spread(self, key: Key) -> float:
        """Standard deviation of the seeds' means in points; 0 where nothing is random."""
        counted = self.prompts(key.setting)
        means = [by_task(self.zoo.cases, m.right, counted).mean() for m in self.marks[key]]
        return float(np.std(means, ddof=1)) if len(means) > 1 else 0.0

    def family(self, key: Key, family: str) -> float:
        """Per cent over the tasks of one family."""
        return self.mean(key, where=np.array([c.family == family for c in self.zoo.cases]))

    def prompts(self, setting: Setting) -> Bools:
        """(N,) the prompts that count."""
        seen = self.seen_wording
        return {"iid": seen, "wordings": ~seen, "masked": np.ones(len(seen), bool)}[setting]

    @property
    def seen_wording(self) -> Bools:
        """(N,) whether training and the samples use the prompt's wording."""
        return np.array([case.seen_wording for case in self.zoo.cases])


def by_task(cases: Sequence[Case], values: Floats, where: Bools | None = None) -> Floats:
    """(N,) shares -> (T,) per cent of the tasks, in the order of their names; tasks without a
    prompt in `where` are left out."""
    names = np.array([case.adapter for case in cases])
    keep = np.ones(len(names), bool) if where is None else where
    return np.array([100.0 * values[keep & (names == n)].mean() for n in np.unique(names[keep])])


def interval(differences: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (T,) values, tasks drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(differences), (RESAMPLES, len(differences)))  # (RESAMPLES, T)
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def floats(values: Sequence[float] | Sequence[bool]) -> Floats:
    """(N,)"""
    return np.array(values, dtype=np.float64)


def _chosen(
    zoo: Zoo, pool: Pool, case: Case, request: GenerationRequest, answer: Generation
) -> bool:
    best = max(range(len(answer.weights)), key=answer.weights.__getitem__)
    return zoo.is_right(case, request.experts[best].ref.name, pool)
