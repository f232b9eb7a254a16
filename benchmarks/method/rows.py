"""From the board to rows: one a line of the table, and the promises with their targets.

Exact match is in per cent, differences are in points. The default gate is the product's own; a gain
is its difference to a published baseline, task by task, so that the interval is over tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from benchmarks.method.cases import Setting
from benchmarks.method.scores import Board, Floats, Key, interval
from benchmarks.method.suite import PUBLISHED_RETRIEVER
from benchmarks.report import Row

K: Final = 3  # the product's default, and the papers'
Better = Literal["higher", "lower"]
RIVALS: Final = ("selection", "fusion", "mixture", "routerlora")


@dataclass(frozen=True)
class Default:
    """The product's default gate and trained retriever, under the names of the board."""

    gate: str
    retriever: str


def all_rows(board: Board, default: Default, ks: tuple[int, ...]) -> list[Row]:
    """Every line of the table, then the promises: the last lines on a terminal."""
    lines = [row for key in sorted(board.marks) for row in line_rows(board, key)]
    return [*lines, *gain_rows(board, default), *summary(board, default, ks)]


def line_rows(board: Board, key: Key) -> Iterator[Row]:
    """Mean and spread; for k = 3 also by wording and family, and what the gate looked at."""
    yield Row(str(key), board.mean(key), "%")
    marks = board.marks[key]
    if len(marks) > 1:
        yield Row(f"{key}_sd", board.spread(key), "points", better="lower")
    if key.k not in (0, K):
        return
    yield Row(f"{key}_seen_wordings", board.mean(key, where=board.seen_wording), "%")
    yield Row(f"{key}_heldout_wordings", board.mean(key, where=~board.seen_wording), "%")
    for part in ("chosen", "seen", "unseen"):
        if getattr(marks[0], part) is not None:
            yield Row(f"{key}_{_PARTS[part]}", board.mean(key, part), "%")
    if marks[0].second_pass is not None:
        yield from _cost_rows(board, key)
    for family in sorted(set(board.zoo.families.values())):
        yield Row(f"{key}_family_{family}", board.family(key, family), "%")


_PARTS: Final = {
    "chosen": "weight_on_right_adapter",
    "seen": "tasks_seen_by_router",
    "unseen": "tasks_unseen_by_router",
}


def _cost_rows(board: Board, key: Key) -> Iterator[Row]:
    yield Row(f"{key}_second_pass", board.mean(key, "second_pass"), "% of prompts", better="lower")
    yield Row(f"{key}_extra_tokens", board.mean(key, "extra_tokens"), "% of tokens", better="lower")


def gain_rows(board: Board, default: Default) -> Iterator[Row]:
    """What each part gives: every gate of ours under every retriever, against the best published
    baseline masked and against Selection on wordings that retrieval never saw."""
    held_out = ~board.seen_wording
    for key in sorted(board.marks):
        if key.method not in ("prior", "cascade", "joint", "joint-cascade") or key.k != K:
            continue
        name = f"{key.method}_{key.retriever}"
        if key.setting == "masked":
            gain = board.tasks(key) - board.tasks(best_rival(board, "masked", (K,)))
            yield from _with_interval(f"ood_gain_{name}_points", gain)
        else:
            rival = board.tasks(_selection("iid"), where=held_out)
            gain = board.tasks(key, where=held_out) - rival
            yield from _with_interval(f"unseen_wording_gain_{name}_points", gain)


def summary(board: Board, default: Default, ks: tuple[int, ...]) -> Iterator[Row]:
    """The promises of the README."""
    iid = Key(default.gate, default.retriever, "iid", K)
    masked = replace(iid, setting="masked")
    perfect = board.mean(Key("perfect", "", "iid", 0))
    yield Row("iid_vs_perfect", board.mean(iid) / perfect, "of Perfect selection", 0.99)
    gain = board.tasks(masked) - board.tasks(best_rival(board, "masked", (K,)))
    low, high = interval(gain)
    yield Row("ood_gain_points", float(gain.mean()), "points", 6.0)
    yield Row("ood_gain_low", low, "points", 0.0)
    yield Row("ood_gain_high", high, "points")
    best = max((replace(masked, k=k) for k in ks), key=board.mean)
    at_best = board.tasks(best) - board.tasks(best_rival(board, "masked", ks))
    yield Row("ood_gain_best_k_points", float(at_best.mean()), "points")
    held_out = ~board.seen_wording
    wordings = board.tasks(iid, where=held_out) - board.tasks(_selection("iid"), where=held_out)
    yield Row("unseen_wording_gain_points", float(wordings.mean()), "points", 6.0)
    yield Row("unseen_wording_gain_low", interval(wordings)[0], "points", 0.0)
    yield from _router_gaps(board, default)


def best_rival(board: Board, setting: Setting, ks: tuple[int, ...]) -> Key:
    """The best published baseline of RIVALS over these k."""
    keys = [Key(name, PUBLISHED_RETRIEVER, setting, k) for name in RIVALS for k in ks]
    return max((key for key in keys if key in board.marks), key=board.mean)


def _router_gaps(board: Board, default: Default) -> Iterator[Row]:
    """Seen less unseen, task by task: each task is once seen and once not, so that whatever needs
    no router, Perfect selection too, cancels."""
    for key in sorted(board.marks):
        if board.marks[key][0].seen is None or key.k != K:
            continue
        gap = board.tasks(key, "seen") - board.tasks(key, "unseen")
        yield from _with_interval(f"unseen_gap_{key}_points", gap, better="lower")
    chosen = Key("joint", default.retriever, "iid", K)
    if chosen in board.marks:
        gap = board.tasks(chosen, "seen") - board.tasks(chosen, "unseen")
        yield Row("unseen_gap_points", float(gap.mean()), "points", 2.0, "lower")


def _with_interval(name: str, differences: Floats, better: Better = "higher") -> Iterator[Row]:
    low, high = interval(differences)
    yield Row(name, float(differences.mean()), "points", better=better)
    yield Row(f"{name}_low", low, "points", better=better)
    yield Row(f"{name}_high", high, "points", better=better)


def _selection(setting: Setting) -> Key:
    return Key("selection", PUBLISHED_RETRIEVER, setting, K)
