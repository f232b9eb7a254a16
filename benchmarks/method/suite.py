"""Runs the methods and fills the board: what is evaluated under which retriever, pool and k."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks.method.answers import Answers, Say
from benchmarks.method.arrow import use_arrow
from benchmarks.method.cases import POOLS, Pool, ZooSource, ref_of
from benchmarks.method.methods import Methods, in_half
from benchmarks.method.retrieval import Retrieval
from benchmarks.method.routers import examples, lessons, train_halves
from benchmarks.method.scores import Board, Marks, both_halves

PUBLISHED_RETRIEVER: Final = "minilm"
Ks = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Suite:
    """One run of the benchmark. `steps`: of a router's training."""

    methods: Methods
    board: Board
    steps: int
    say: Say

    def ceilings(self) -> None:
        """Base model and Perfect selection: neither looks at a retriever."""
        for pool in POOLS:
            self._add("base", "", pool, 0, self.methods.base(pool))
            self._add("perfect", "", pool, 0, self.methods.perfect(pool))

    def published(self, retrieval: Retrieval, ks: Ks) -> None:
        """The published baselines that need no training but a gate's."""
        methods, arrow = self.methods, self._arrow()
        gate, scores = methods.task_gate()
        for name in ("fusion", "mixture"):
            self._each(name, retrieval, ks, partial(methods.gate, name, retrieval))
        self._each("soup", retrieval, ks, partial(methods.soup, retrieval))
        self._each("moe", None, ks, partial(methods.moe, gate, scores))
        self._each("arrow", retrieval, ks, partial(arrow.gate, "mixture", retrieval))

    def unrouted(self, retrieval: Retrieval, ks: Ks) -> None:
        """What needs no router: Selection, the oracle, the prior alone and, where it is known how
        sure the adapters are, the cascade over it."""
        gates = {"selection": "selection", "prior": "mole"}
        if retrieval.rule is not None:
            gates["cascade"] = "cascade"
        for name, gate in gates.items():
            self._each(name, retrieval, ks, partial(self.methods.gate, gate, retrieval))
        self._each("oracle", retrieval, ks, partial(self.methods.oracle, retrieval))

    def router_lora(self, retrieval: Retrieval, seed: int, ks: Ks) -> None:
        """RouterLoRA as published: trained without a prior."""
        self._halves("routerlora", "mole-plain", retrieval, seed, ks, prior=False)

    def joint(self, retrieval: Retrieval, seed: int, ks: Ks) -> None:
        """Router and prior trained jointly."""
        self._halves("joint", "mole", retrieval, seed, ks, prior=True)

    def check_end_to_end(self, retrieval: Retrieval, k: int) -> None:
        """Asks the engine for its gate `cascade`. Raises SystemExit when an answer differs."""
        for pool in POOLS:
            if differing := list(self.methods.differing("cascade", retrieval, pool, k)):
                raise SystemExit(f"the engine's cascade differs from the table's: {differing[:3]}")

    def _halves(
        self, name: str, gate: str, retrieval: Retrieval, seed: int, ks: Ks, prior: bool
    ) -> None:
        """Two routers, each trained on one half of the adapters, and their mean."""
        methods, answers, zoo = self.methods, self.methods.answers, self.methods.zoo
        known = retrieval if prior else None
        taught = examples(answers, zoo, lessons(zoo, seed), known, seed)
        versions, first = train_halves(answers, zoo, taught, known, seed, self.steps, self.say)
        mask = in_half(zoo, first)

        def run(pool: Pool, k: int) -> Marks:
            one, two = (methods.gate(gate, retrieval, pool, k, v) for v in versions)
            return both_halves(one, two, mask)

        self._each(name, retrieval, ks, run)
        for version in versions:
            answers.forget(version)

    def _each(
        self, name: str, retrieval: Retrieval | None, ks: Ks, run: Callable[[Pool, int], Marks]
    ) -> None:
        for pool in POOLS:
            for k in ks:
                self._add(name, retrieval.name if retrieval else "", pool, k, run(pool, k))

    def _add(self, method: str, retriever: str, pool: Pool, k: int, marks: Marks) -> None:
        for key in self.board.add(method, retriever, pool, k, marks):
            self.say(f"{key}: {self.board.mean(key):.1f}")

    def _arrow(self) -> Methods:
        """The same methods over an engine whose layers weigh by Arrow."""
        zoo = self.methods.zoo
        answers = Answers.over_zoo(len(zoo.adapters))
        experts = [ref_of(name) for name in zoo.adapters]
        use_arrow(answers.engine.base.model, experts, ZooSource())
        return Methods(zoo, answers)
