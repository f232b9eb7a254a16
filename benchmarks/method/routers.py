"""Routers for the table: trained by the product on one half of the adapters, then on the other.

So every task is once seen and once not, and a comparison of the two is free of the tasks' own
difficulty: Perfect selection, and whatever else needs no router, is the same on both sides.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.method.answers import Answers, Say
from benchmarks.method.cases import Zoo, ref_of
from benchmarks.method.retrieval import Retrieval
from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.router_examples import Example
from ramole_core.mole.router_setup import RouterRecipe
from ramole_core.mole.router_training import train_router
from ramole_core.zoo.tasks import TASKS, train_example

EXAMPLES_PER_TASK: Final = 50
BLUR: Final = 0.5


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
    answers: Answers, zoo: Zoo, taught: Sequence[Lesson], retrieval: Retrieval | None, seed: int
) -> list[Example]:
    """The lessons as the product's training takes them; with `retrieval` they carry the cosine to
    every adapter, for the prior."""
    codec, end = answers.engine.base.codec, min(answers.engine.base.eos_ids)
    similarities: list[dict[AdapterRef, float]] = [{} for _ in taught]
    if retrieval is not None:
        refs = [ref_of(name) for name in zoo.adapters]
        rng = random.Random(seed)
        vectors = retrieval.encoder.encode([blurred(lesson.prompt, rng) for lesson in taught])
        table = vectors @ retrieval.vectors.T  # (N, A)
        similarities = [dict(zip(refs, row, strict=True)) for row in table.tolist()]
    return [
        Example(
            prompt_ids=tuple(codec.encode_prompt(lesson.prompt)),
            target_ids=(*codec.encode_prompt(lesson.target), end),
            own=ref_of(lesson.adapter),
            similarities=known,
        )
        for lesson, known in zip(taught, similarities, strict=True)
    ]


def blurred(prompt: str, rng: random.Random) -> str:
    """`prompt` as retrieval sees it in a lesson: every word is lost with probability BLUR. In the
    training wordings retrieval is right, and a router beside it would have nothing to learn."""
    kept = [word for word in prompt.split() if rng.random() >= BLUR]
    return " ".join(kept) or prompt


def train_halves(
    answers: Answers,
    zoo: Zoo,
    taught: Sequence[Example],
    retrieval: Retrieval | None,
    seed: int,
    steps: int,
    say: Say,
) -> tuple[tuple[str, str], frozenset[str]]:
    """Two routers, one for each half of the adapters, known to the engine by the returned versions;
    also the first half. With `retrieval` the prior is part of the scores; without it this is
    RouterLoRA as published: all training adapters active, dropout 0.5, no prior."""
    first, second = zoo.halves(seed)
    kind = "plain" if retrieval is None else retrieval.name
    versions = (f"{kind}-{seed}-first", f"{kind}-{seed}-second")
    recipe = RouterRecipe(steps=steps, seed=seed)
    if retrieval is not None:
        recipe = replace(recipe, encoder=retrieval.encoder.version, tau=retrieval.tau)
    for version, half in zip(versions, (first, second), strict=True):
        mine = [example for example in taught if example.own.name in half]
        with answers.own_attention():
            trained = train_router(
                answers.engine.runner.mole, answers.engine.bank, mine, recipe, "zoo", created_at=""
            )
        answers.routers.versions[version] = trained.weights
        card = trained.weights.card
        say(
            f"router {version}: {card.steps} steps kept, held-out loss {card.held_out_before:.3f} "
            f"-> {card.held_out_after:.3f}"
        )
    return versions, first
