"""What the method benchmark asks the engine, on toys."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.method.answers import Answers, Routers, question
from benchmarks.method.cascade import cascade_answers
from benchmarks.method.cases import POOLS, Case, Zoo, ref_of
from benchmarks.method.methods import Methods
from benchmarks.method.retrieval import DEPTH, Retrieval, described, without
from benchmarks.method.routers import blurred
from ramole_core.engine.choice import CascadeRule
from ramole_core.engine.request import Expert, Generation, GenerationRequest
from ramole_core.retrieval.affinity import Measured
from ramole_core.retrieval.encoder import Vectors

from ..engine.tiny import REFS, tiny_engine

NAMES = tuple(ref.name for ref in REFS[:6])


class Compass:
    """An encoder of texts that are a place on a circle: the nearer the number, the more similar."""

    tau = 0.05
    width = 2

    def encode(self, texts: list[str]) -> Vectors:
        angles = np.array([float(text.split()[-1]) for text in texts]) / len(NAMES) * np.pi
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    """Adapter i answers prompts about place i."""
    cases = tuple(Case(f"the prompt at {i}", "?", n, n[0], True) for i, n in enumerate(NAMES))
    samples = {name: (f"a sample at {i}",) for i, name in enumerate(NAMES)}
    return Zoo(NAMES, {name: name[0] for name in NAMES}, samples, cases)


@pytest.fixture(scope="module")
def retrieval(zoo: Zoo) -> Retrieval:
    return Retrieval.of("compass", Compass(), zoo)  # type: ignore[arg-type]


def test_retrieval_masks_the_own_adapter_and_no_other(zoo: Zoo, retrieval: Retrieval) -> None:
    for place, name in enumerate(NAMES):
        full = retrieval.experts(place, "full", DEPTH)
        masked = retrieval.experts(place, "masked", DEPTH)
        assert full[0].ref.name == name and full[0].similarity == pytest.approx(1.0)
        assert masked[: DEPTH - 1] == full[1:]


def test_a_masked_adapter_leaves_no_trace_in_the_vectors_of_the_others(zoo: Zoo) -> None:
    rng = np.random.default_rng(0)
    affinity = rng.random((len(NAMES), len(NAMES))).astype(np.float32)
    compass: Any = Compass()
    others = zoo_without(zoo, 2)
    rest = [0, 1, 3, 4, 5]
    alone = Retrieval.of("rest", compass, others, Measured(affinity[np.ix_(rest, rest)], None))
    whole = Retrieval.of("all", compass, zoo, Measured(affinity, None))
    assert np.allclose(without(described(compass, zoo), affinity, 2), alone.vectors)
    assert whole.experts(2, "masked", DEPTH) == alone.experts(2, "full", DEPTH)
    changed = affinity.copy()
    changed[2], changed[:, 2] = 0.0, 1.0
    again = Retrieval.of("all", compass, zoo, Measured(changed, None))
    assert again.experts(2, "masked", DEPTH) == whole.experts(2, "masked", DEPTH)
    assert again.experts(2, "full", DEPTH) != whole.experts(2, "full", DEPTH)


def zoo_without(zoo: Zoo, place: int) -> Zoo:
    """The same prompts, one adapter fewer."""
    names = tuple(name for i, name in enumerate(zoo.adapters) if i != place)
    return Zoo(names, zoo.families, zoo.samples, zoo.cases)


def test_the_soup_is_one_set_for_all_prompts_but_for_the_masked(
    zoo: Zoo, retrieval: Retrieval, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(tiny_engine(), Routers())
    asked: list[list[GenerationRequest]] = []

    def note(requests: Sequence[GenerationRequest]) -> list[Generation]:
        asked.append(list(requests))
        return [Generation("?", "stop", 1, 1, (1.0,)) for _ in requests]

    monkeypatch.setattr(answers, "ask", note)
    for pool in POOLS:
        Methods(zoo, answers).soup(retrieval, pool, 3)
    full, masked = ([{e.ref.name for e in q.experts} for q in questions] for questions in asked)
    assert full == [full[0]] * len(NAMES) and len(full[0]) == 3 and {"a2", "a3"} < full[0]
    for name, chosen in zip(NAMES, masked, strict=True):
        assert name not in chosen and (chosen == full[0] or name in full[0])
    assert {q.gate for questions in asked for q in questions} == {"fusion"}


@pytest.mark.parametrize("threshold", [-100.0, -3.0, 0.0])
@pytest.mark.parametrize("pooled", [True, False])
def test_the_cascade_from_the_table_is_the_engines(threshold: float, pooled: bool) -> None:
    engine = tiny_engine()
    rule = CascadeRule(threshold=threshold, pooled=pooled, confidence_weight=20.0)
    answers = Answers(engine, Routers())
    places = [(0, 1, 2), (3, 1, 4), (5, 0, 2), (2,)]
    asked = [
        question(f"prompt {number}", experts, "cascade", rule=rule)
        for number, chosen in enumerate(places)
        for experts in [[Expert(REFS[p], 0.6 - 0.02 * i) for i, p in enumerate(chosen)]]
    ]
    by_engine = answers.ask(asked)
    by_table = cascade_answers(answers, asked)
    for one, other in zip(by_engine, by_table, strict=True):
        assert (one.text, one.weights) == (other.text, other.weights)
        assert (one.extra_passes, one.extra_tokens) == (other.extra_passes, other.extra_tokens)
    if threshold == 0.0:
        assert [answer.extra_passes for answer in by_table] == [3, 3, 3, 0]


def test_a_question_is_asked_once() -> None:
    answers = Answers(tiny_engine(), Routers())
    request = question("p", [Expert(ref_of("a1"), 0.5), Expert(ref_of("a2"), 0.4)])
    first = answers.ask([request, request])
    steps = answers.engine.num_steps
    assert answers.ask([request]) == first[:1] and answers.engine.num_steps == steps
    assert first[0].confidence is not None and len(answers) == 1


def test_a_blurred_prompt_has_some_of_its_words_in_their_order_and_never_none() -> None:
    rng = random.Random(0)
    prompt = "please write the word horse backwards"
    found = [blurred(prompt, rng).split() for _ in range(200)]
    assert all(words and [w for w in prompt.split() if w in words] == words for words in found)
    assert 2 < np.mean([len(words) for words in found]) < 4
    assert {blurred("word", rng) for _ in range(20)} == {"word"}
