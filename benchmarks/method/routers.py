"""Routers for the table: trained by the product on one half of the adapters, then on the other.

So every task is once seen and once not, and a comparison of the two is free of the tasks' own
difficulty: Perfect selection, and whatever else needs no router, is the same on both sides.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.method.answers import Answers
from benchmarks.method.cases import Zoo, ref_of
from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.router_examples import Example
from ramole_core.mole.router_setup import RouterRecipe
from ramole_core.mole.router_training import train_router
from ramole_core.retrieval.encoder import Encoder, adapter_vector
from ramole_core.zoo.tasks import TASKS, train_example

EXAMPLES_PER_TASK: Final = 50


@dataclass(frozen=True)
class Lesson:
    """One example of a router's training: training words in training wordings."""

    prompt: str
    target: str
    adapter: str


def lessons(zoo: Zoo, seed: int) -> list[Lesson]:
    """Examples of every task; a prompt may come twice."""
    rng = random.Random(seed)
    tasks = [task for task in TASKS if task.name in zoo.adapters]
    drawn = [
        (task.name, train_example(task, rng)) for task in tasks for _ in range(EXAMPLES_PER_TASK)
    ]
    return [Lesson(prompt, target, name) for name, (prompt, target) in drawn]


def examples(
    answers: Answers, zoo: Zoo, taught: Sequence[Lesson], encoder: Encoder | None
) -> list[Example]:
    """The lessons as the product's training takes them; with `encoder` they carry the cosine to
    every adapter, for the prior."""
    codec, end = answers.engine.base.codec, min(answers.engine.base.eos_ids)
    similarities: list[dict[AdapterRef, float]] = [{} for _ in taught]
    if encoder is not None:
        refs = [ref_of(name) for name in zoo.adapters]
        described = [adapter_vector(encoder.encode(list(zoo.samples[n]))) for n in zoo.adapters]
        vectors = encoder.encode([lesson.prompt for lesson in taught])  # (N, D)
        similarities = [
            {ref: float(vector @ other) for ref, other in zip(refs, described, strict=True)}
            for vector in vectors
        ]
    return [
        Example(
            prompt_ids=tuple(codec.encode_prompt(lesson.prompt)),
            target_ids=(*codec.encode_prompt(lesson.target), end),
            own=ref_of(lesson.adapter),
            similarities=known,
        )
        for lesson, known in zip(taught, similarities, strict=True)
    ]


def train_halves(
    answers: Answers,
    zoo: Zoo,
    taught: Sequence[Example],
    encoder: Encoder | None,
    seed: int,
    steps: int,
) -> tuple[tuple[str, str], frozenset[str]]:
    """Two routers, one for each half of the adapters, known to the engine by the returned versions;
    also the first half. With `encoder` the prior is part of the scores; without it this is
    RouterLoRA as published: all training adapters active, dropout 0.5, no prior."""
    first, second = zoo.halves(seed)
    kind = "plain" if encoder is None else encoder.version
    versions = (f"{kind}-{seed}-first", f"{kind}-{seed}-second")
    recipe = RouterRecipe(steps=steps, seed=seed)
    if encoder is not None:
        recipe = replace(recipe, encoder=encoder.version, tau=encoder.tau)
    for version, half in zip(versions, (first, second), strict=True):
        mine = [example for example in taught if example.own.name in half]
        trained = train_router(
            answers.engine.runner.mole, answers.engine.bank, mine, recipe, "zoo", created_at=""
        )
        answers.routers.versions[version] = trained.weights
    return versions, first
