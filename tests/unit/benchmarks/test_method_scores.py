"""What the method benchmark counts, and the intervals it gives."""

from typing import Any

import numpy as np
import pytest

from benchmarks.method.cases import POOLS, Case, Zoo, ref_of
from benchmarks.method.rows import Default, details, summary
from benchmarks.method.scores import Board, Key, Marks, both_halves, by_task, interval, marks_of
from benchmarks.method.table import table
from ramole_core.engine.request import Expert, Generation, GenerationRequest

ADAPTERS = ("a-1", "a-2", "b-1", "b-2")


def toy_zoo(per_task: int = 2) -> Zoo:
    """Two families of two adapters; a task's first prompt is in a seen wording, others are not."""
    cases = [
        Case(f"{name} prompt {i}", "yes", name, name[0], seen_wording=i == 0)
        for name in ADAPTERS
        for i in range(per_task)
    ]
    return Zoo(ADAPTERS, {n: n[0] for n in ADAPTERS}, {n: ("s",) for n in ADAPTERS}, tuple(cases))


def answer(text: str, *weights: float) -> Generation:
    return Generation(text, "stop", 3, 2, weights)


def asked(zoo: Zoo, *names: str, gate: str = "mole") -> list[GenerationRequest]:
    experts = tuple(Expert(ref_of(name), 0.5) for name in names)
    return [GenerationRequest(case.prompt, experts=experts, gate=gate) for case in zoo.cases]


def constant(zoo: Zoo, value: float, **more: Any) -> Marks:
    return Marks(np.full(len(zoo.cases), value), **more)


def test_exact_match_is_to_the_letter_and_the_mean_is_over_tasks() -> None:
    zoo = toy_zoo()
    texts = ["yes", "Yes", "yes ", "", "yes", "yes", "no", "no"]
    marks = marks_of(zoo, "full", asked(zoo, "a-1", "b-1"), [answer(t, 0.6, 0.4) for t in texts])
    assert marks.right.tolist() == [1, 0, 0, 0, 1, 1, 0, 0]
    assert by_task(zoo.cases, marks.right).tolist() == [50, 0, 100, 0]
    seen = np.array([case.seen_wording for case in zoo.cases])
    assert by_task(zoo.cases, marks.right, seen).tolist() == [100, 0, 100, 0]
    board = Board(zoo)
    iid, wordings = board.add("prior", "minilm", "full", 3, marks)
    assert (iid.setting, wordings.setting) == ("iid", "wordings")
    assert board.tasks(iid).tolist() == [100, 0, 100, 0]
    assert board.tasks(wordings).tolist() == [0, 0, 100, 0]
    assert board.mean(iid) == 50.0 and board.family(iid, "a") == 50.0 and board.spread(iid) == 0.0
    (masked,) = board.add("prior", "minilm", "masked", 3, marks)
    assert masked.setting == "masked" and board.mean(masked) == 37.5
    assert board.mean(masked, where=~board.seen_wording) == 25.0


def test_the_largest_weight_is_judged_by_the_pool_and_uniform_gates_have_none() -> None:
    zoo = toy_zoo(per_task=1)
    answers = [answer("yes", 0.7, 0.3)] * 4
    full = marks_of(zoo, "full", asked(zoo, "a-1", "b-1"), answers)
    masked = marks_of(zoo, "masked", asked(zoo, "a-1", "b-1"), answers)
    assert full.chosen is not None and full.chosen.tolist() == [1, 0, 0, 0]
    assert masked.chosen is not None and masked.chosen.tolist() == [1, 1, 0, 0]
    for gate in ("mixture", "fusion"):
        assert marks_of(zoo, "full", asked(zoo, "a-1", "b-1", gate=gate), answers).chosen is None


def test_two_halves_make_every_task_seen_once_and_unseen_once() -> None:
    chosen = np.ones(4)
    first = Marks(np.array([1.0, 1, 0, 0]), chosen)  # right on what it was trained on
    second = Marks(np.array([0.0, 1, 1, 1]), chosen)
    both = both_halves(first, second, np.array([True, True, False, False]))
    assert both.seen is not None and both.unseen is not None
    assert both.seen.tolist() == [1, 1, 1, 1] and both.unseen.tolist() == [0, 1, 0, 0]
    assert both.right.tolist() == [0.5, 1, 0.5, 0.5]


def test_the_halves_are_complementary_even_in_every_family_and_a_function_of_the_seed() -> None:
    names = tuple(f"{family}-{i}" for family in "abcd" for i in range(5))
    zoo = Zoo(names, {n: n[0] for n in names}, {}, ())
    first, second = zoo.halves(0)
    assert first | second == set(names) and not first & second and len(first) == 10
    assert all(2 <= sum(n[0] == family for n in first) <= 3 for family in "abcd")
    assert zoo.halves(0) == (first, second) != zoo.halves(1)


def test_the_interval_covers_the_mean_shrinks_with_tasks_and_repeats() -> None:
    rng = np.random.default_rng(3)
    few, many = rng.normal(5, 2, 10), rng.normal(5, 2, 1000)
    low, high = interval(many)
    assert low < many.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 1000**0.5, rel=0.1)
    assert interval(few)[1] - interval(few)[0] > high - low
    assert interval(few) == interval(few) and interval(np.full(5, 2.0)) == (2.0, 2.0)


def test_seeds_are_averaged_and_their_spread_reported() -> None:
    zoo = toy_zoo()
    board, key = Board(zoo), Key("routerlora", "minilm", "iid", 3)
    for value in (0.2, 0.4, 0.6):
        board.add("routerlora", "minilm", "full", 3, constant(zoo, value))
    assert board.mean(key) == pytest.approx(40.0) and board.spread(key) == pytest.approx(20.0)


def test_the_promised_rows_compare_the_default_gate_with_the_best_published_baseline() -> None:
    zoo = toy_zoo()
    board = Board(zoo)
    for name, value in (("perfect", 0.9), ("base", 0.1)):
        board.add(name, "", "full", 0, constant(zoo, value))
        board.add(name, "", "masked", 0, constant(zoo, value))
    for pool in POOLS:
        for method, value in (("selection", 0.5), ("fusion", 0.2), ("mixture", 0.6)):
            board.add(method, "minilm", pool, 3, constant(zoo, value))
        both = constant(zoo, 0.7, seen=np.full(8, 0.72), unseen=np.full(8, 0.68))
        board.add("joint", "trained", pool, 3, both)
        board.add("routerlora", "minilm", pool, 3, both)
        second = np.full(8, 0.25)
        ours = constant(zoo, 0.9, second_pass=second, extra_tokens=second)
        board.add("cascade", "trained", pool, 3, ours)
    rows = {row.name: row for row in summary(board, Default("cascade", "trained"))}
    assert rows["iid_vs_perfect"].value == pytest.approx(1.0) and rows["iid_vs_perfect"].met
    assert rows["iid_vs_perfect_all_wordings"].met is None
    assert rows["ood_gain_points"].value == pytest.approx(20.0)  # over RouterLoRA
    assert rows["unseen_wording_gain_points"].value == pytest.approx(40.0)
    assert rows["unseen_gap_points"].value == pytest.approx(4.0)
    assert rows["unseen_gap_points"].met is False
    assert rows["unseen_gap_routerlora_points"].met is None
    more = {row.name: row.value for row in details(board)}
    assert more["cascade_trained_masked_k3"] == pytest.approx(90.0)
    assert more["ood_gain_cascade_trained_points"] == pytest.approx(20.0)
    line = next(x for x in table(board).splitlines() if x.startswith("cascade"))
    assert " ".join(line.split()) == "cascade trained 90.0 90.0 90.0 25 / 25 / 25 %"
