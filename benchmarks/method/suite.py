"""Runs the methods and fills the board: what is evaluated under which retriever, setting and k."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks.method.answers import Answers, Say
from benchmarks.method.arrow import use_arrow
from benchmarks.method.cases import SETTINGS, Setting, ZooSource, ref_of
from benchmarks.method.methods import Methods, in_half
from benchmarks.method.retrieval import Retrieval
from benchmarks.method.routers import examples, lessons, train_halves
from benchmarks.method.scores import Board, Key, Marks, both_halves
from ramole_core.retrieval.encoder import Encoder

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
        for setting in SETTINGS:
            self._add(Key("base", "", setting, 0), self.methods.base(setting))
            self._add(Key("perfect", "", setting, 0), self.methods.perfect(setting))

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
        """What needs no router: Selection, the oracle, the prior alone and the cascade over it."""
        gates = {"selection": "selection", "prior": "mole", "cascade": "cascade"}
        for name, gate in gates.items():
            self._each(name, retrieval, ks, partial(self.methods.gate, gate, retrieval))
        self._each("oracle", retrieval, ks, partial(self.methods.oracle, retrieval))

    def routed(self, retrieval: Retrieval, encoder: Encoder | None, seed: int, ks: Ks) -> None:
        """Two routers on the halves, then their gates. Without an encoder: RouterLoRA as published,
        with it: router and prior trained jointly, alone and under the cascade."""
        methods, answers = self.methods, self.methods.answers
        taught = examples(answers, methods.zoo, lessons(methods.zoo, seed), encoder)
        versions, first = train_halves(answers, methods.zoo, taught, encoder, seed, self.steps)
        mask = in_half(methods.zoo, first)

        def halves(gate: str) -> Callable[[Setting, int], Marks]:
            def run(setting: Setting, k: int) -> Marks:
                one, two = (methods.gate(gate, retrieval, setting, k, v) for v in versions)
                return both_halves(one, two, mask)

            return run

        if encoder is None:
            self._each("routerlora", retrieval, ks, halves("mole-plain"))
        else:
            self._each("joint", retrieval, ks, halves("mole"))
            self._each("joint-cascade", retrieval, ks, halves("cascade"))
        for version in versions:
            answers.forget(version)

    def check_end_to_end(self, gate: str, retrieval: Retrieval, k: int) -> None:
        """Asks the engine for the gate itself. Raises SystemExit when an answer differs."""
        for setting in SETTINGS:
            if differing := list(self.methods.differing(gate, retrieval, setting, k)):
                raise SystemExit(f"the engine's {gate} differs from the table's: {differing[:3]}")

    def _each(
        self, name: str, retrieval: Retrieval | None, ks: Ks, run: Callable[[Setting, int], Marks]
    ) -> None:
        for setting in SETTINGS:
            for k in ks:
                key = Key(name, retrieval.name if retrieval else "", setting, k)
                self._add(key, run(setting, k))

    def _add(self, key: Key, marks: Marks) -> None:
        self.board.add(key, marks)
        self.say(f"{key}: {self.board.mean(key):.1f}")

    def _arrow(self) -> Methods:
        """The same methods over an engine whose layers weigh by Arrow."""
        zoo = self.methods.zoo
        answers = Answers.over_zoo(len(zoo.adapters))
        experts = [ref_of(name) for name in zoo.adapters]
        use_arrow(answers.engine.base.model, experts, ZooSource())
        return Methods(zoo, answers)
