"""The benchmark in parts that need nothing of each other, so that every core can do one.

Two parts measure what no seed changes (but for one router); each seed has two: RouterLoRA, and the
trained retrievers with what depends on them. A part builds its own engine and gives back its lines
of the board.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.method.answers import Answers, progress
from benchmarks.method.cases import Zoo
from benchmarks.method.methods import Methods
from benchmarks.method.retrievers import DEFAULT, minilm, trained, untrained
from benchmarks.method.rows import K
from benchmarks.method.scores import Board, Key, Marks
from benchmarks.method.suite import Suite
from ramole_core import zoo as shipped

KS: Final = (1, 3, 5)


@dataclass(frozen=True)
class Scale:
    """How much is measured. `per_task`: prompts of a task at most; steps: of each training."""

    split: Literal["dev", "test"] = "test"
    per_task: int | None = None
    router_steps: int = 150
    encoder_steps: int = 60

    def zoo(self) -> Zoo:
        """The installed zoo with the prompts to measure on."""
        path = shipped.test_path() if self.split == "test" else shipped.dev_path()
        return Zoo.load(path, self.per_task)


@dataclass(frozen=True)
class Part:
    """`kind` is one of PARTS. `first`: of the seeds; only it measures every k, and what is not
    random."""

    kind: str
    scale: Scale
    seed: int = 0
    first: bool = True

    @property
    def ks(self) -> tuple[int, ...]:
        """The k to measure."""
        return KS if self.first else (K,)


def measure_all(scale: Scale, seeds: Sequence[int], jobs: int) -> Board:
    """All parts, `jobs` at a time, in processes of their own."""
    seeded = [
        Part(kind, scale, seed, seed == seeds[0])
        for seed in seeds
        for kind in ("trained", "routers")
    ]
    constant = [Part(kind, scale, seeds[0]) for kind in ("published", "untrained")]
    board = Board(scale.zoo())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        for found in pool.map(measure, [*seeded, *constant]):
            for key, marks in found.items():
                board.marks.setdefault(key, []).extend(marks)
    return board


def measure(part: Part) -> dict[Key, list[Marks]]:
    """One part, in a process of its own."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    zoo = part.scale.zoo()
    methods = Methods(zoo, Answers.over_zoo(len(zoo.adapters)))
    say = progress(f"{part.kind} {part.seed}")
    suite = Suite(methods, Board(zoo), part.scale.router_steps, say)
    PARTS[part.kind](suite, part)
    say("done")
    return suite.board.marks


def _published(suite: Suite, part: Part) -> None:
    """Nothing here is random: the published baselines, and our gates over plain MiniLM."""
    retrieval = minilm(suite.methods.zoo)
    suite.ceilings()
    suite.published(retrieval, part.ks)
    suite.unrouted(retrieval, part.ks)


def _untrained(suite: Suite, part: Part) -> None:
    """Our gates over what needs no training, and a router over plain MiniLM."""
    zoo, answers = suite.methods.zoo, suite.methods.answers
    for retrieval in untrained(zoo, answers):
        suite.unrouted(retrieval, part.ks)
    suite.joint(minilm(zoo), part.seed, (K,))


def _routers(suite: Suite, part: Part) -> None:
    """RouterLoRA as published."""
    suite.router_lora(minilm(suite.methods.zoo), part.seed, part.ks)


def _trained(suite: Suite, part: Part) -> None:
    """The trained retrievers of one seed, and the cascade end to end."""
    zoo, answers = suite.methods.zoo, suite.methods.answers
    for retrieval in trained(zoo, answers, part.seed, part.scale.encoder_steps):
        suite.say(f"retriever {retrieval.name} is trained")
        suite.unrouted(retrieval, part.ks)
        if retrieval.name == DEFAULT.retriever:
            suite.joint(retrieval, part.seed, (K,))
            if part.first:
                suite.check_end_to_end(retrieval, K)


PARTS: Final[dict[str, Callable[[Suite, Part], None]]] = {
    "published": _published,
    "untrained": _untrained,
    "routers": _routers,
    "trained": _trained,
}
