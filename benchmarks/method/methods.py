"""Every method as questions to the engine: which experts, which gate.

Each method takes (pool, k) and gives one Marks. Perfect selection and the oracle are
ceilings: they know the answer; the published baselines retrieve with the unit mean of MiniLM.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.method.answers import Answers, question, single
from benchmarks.method.cascade import cascade_answers
from benchmarks.method.cases import Pool, Zoo, ref_of
from benchmarks.method.retrieval import Retrieval
from benchmarks.method.scores import Marks, floats, marks_of
from benchmarks.method.task_gate import TaskGate, hidden_means
from ramole_core.engine.request import GenerationRequest


@dataclass(frozen=True, eq=False)
class Methods:
    """All methods over one zoo and one engine."""

    zoo: Zoo
    answers: Answers

    def base(self, pool: Pool) -> Marks:
        """The base model alone."""
        return self._marks(pool, [question(case.prompt) for case in self.zoo.cases])

    def perfect(self, pool: Pool) -> Marks:
        """The adapter that was trained on the prompt's task."""
        cases = self.zoo.cases
        return self._marks(pool, [single(c.prompt, ref_of(c.adapter)) for c in cases])

    def oracle(self, retrieval: Retrieval, pool: Pool, k: int) -> Marks:
        """Right where any of the k retrieved adapters alone is."""
        asked = [
            [single(case.prompt, e.ref) for e in retrieval.experts(place, pool, k)]
            for place, case in enumerate(self.zoo.cases)
        ]
        self.answers.ask([q for questions in asked for q in questions])
        texts = [{a.text for a in self.answers.ask(questions)} for questions in asked]
        right = [case.target in found for case, found in zip(self.zoo.cases, texts, strict=True)]
        return Marks(floats(right))

    def gate(
        self,
        gate: str,
        retrieval: Retrieval,
        pool: Pool,
        k: int,
        router: str | None = None,
    ) -> Marks:
        """One of the engine's gates over the k retrieved adapters."""
        asked = self.questions(gate, retrieval, pool, k, router)
        if gate != "cascade":
            return self._marks(pool, asked)
        found = cascade_answers(self.answers, asked)
        marks = marks_of(self.zoo, pool, asked, found)
        second = floats([answer.extra_passes > 0 for answer in found])
        tokens = floats([answer.extra_tokens / answer.completion_tokens for answer in found])
        return Marks(marks.right, marks.chosen, second_pass=second, extra_tokens=tokens)

    def questions(
        self,
        gate: str,
        retrieval: Retrieval,
        pool: Pool,
        k: int,
        router: str | None = None,
    ) -> list[GenerationRequest]:
        """What `gate` asks the engine."""
        return [
            question(
                case.prompt,
                retrieval.experts(place, pool, k),
                gate,
                retrieval.tau,
                router,
                retrieval.rule,
            )
            for place, case in enumerate(self.zoo.cases)
        ]

    def soup(self, retrieval: Retrieval, pool: Pool, k: int) -> Marks:
        """AdapterSoup: one set of adapters for the whole batch, parameters averaged. Masked, the
        set is that of the adapters without the prompt's own."""
        sets = {
            case.adapter: retrieval.nearest_to_all(self.zoo.allowed(case, pool), k)
            for case in self.zoo.cases
        }
        cases = self.zoo.cases
        return self._marks(pool, [question(c.prompt, sets[c.adapter], "fusion") for c in cases])

    def moe(self, gate: TaskGate, scores: torch.Tensor, pool: Pool, k: int) -> Marks:
        """MoE by a trained task gate; `scores` (N, A) are its log-probabilities."""
        asked = [
            question(case.prompt, gate.experts(row, self.zoo.allowed(case, pool), k), "weights")
            for case, row in zip(self.zoo.cases, scores, strict=True)
        ]
        return self._marks(pool, asked)

    def task_gate(self) -> tuple[TaskGate, torch.Tensor]:
        """Trains the task gate on the samples; also its (N, A) log-probabilities."""
        names = self.zoo.adapters
        samples = [sample for name in names for sample in self.zoo.samples[name]]
        labels = [place for place, name in enumerate(names) for _ in self.zoo.samples[name]]
        base = self.answers.engine.base
        prompts = [case.prompt for case in self.zoo.cases]
        with self.answers.own_attention():
            features, asked = hidden_means(base, samples), hidden_means(base, prompts)
        gate = TaskGate.train([ref_of(name) for name in names], features, torch.tensor(labels))
        return gate, gate.log_probabilities(asked)

    def differing(
        self, gate: str, retrieval: Retrieval, pool: Pool, k: int
    ) -> Iterator[tuple[str, str, str]]:
        """(prompt, the engine's answer, the table's) where the two are not the same."""
        asked = self.questions(gate, retrieval, pool, k)
        by_table = cascade_answers(self.answers, asked)
        for request, ours, table in zip(asked, self.answers.ask(asked), by_table, strict=True):
            if (ours.text, ours.extra_passes) != (table.text, table.extra_passes):
                yield str(request.prompt), ours.text, table.text

    def _marks(self, pool: Pool, asked: list[GenerationRequest]) -> Marks:
        return marks_of(self.zoo, pool, asked, self.answers.ask(asked))


def in_half(zoo: Zoo, half: frozenset[str]) -> np.ndarray:
    """(N,) whether each prompt's task is in `half`."""
    return np.array([case.adapter in half for case in zoo.cases])
