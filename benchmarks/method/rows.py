"""From the board to rows: the promises with their targets, and the details of every line.

Exact match is in per cent, differences are in points. The default gate is the product's own; a gain
is its difference to a published baseline, task by task, so that the interval is over tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.method.scores import Board, Floats, Key, Setting, interval
from benchmarks.method.suite import PUBLISHED_RETRIEVER
from benchmarks.report import Row

K: Final = 3  # the product's default, and the papers'
Better = Literal["higher", "lower"]
RIVALS: Final = ("selection", "fusion", "mixture", "routerlora")
OURS: Final = ("prior", "cascade", "joint")


@dataclass(frozen=True)
class Default:
    """The product's default gate and trained retriever, under the names of the board."""

    gate: str
    retriever: str

    def key(self, setting: Setting) -> Key:
        """Its line."""
        return Key(self.gate, self.retriever, setting, K)


def summary(board: Board, default: Default) -> Iterator[Row]:
    """The promises of the README."""
    reached = board.mean(default.key("iid")) / board.mean(_perfect("iid"))
    yield Row("iid_vs_perfect", reached, "of Perfect selection", 0.99)
    yield _all_wordings(board, default)
    gain = board.tasks(default.key("masked")) - board.tasks(best_rival(board))
    low, high = interval(gain)
    yield Row("ood_gain_points", float(gain.mean()), "points", 6.0)
    yield Row("ood_gain_low", low, "points", 0.0)
    yield Row("ood_gain_high", high, "points")
    gain = board.tasks(default.key("wordings")) - board.tasks(_selection("wordings"))
    low, high = interval(gain)
    yield Row("unseen_wording_gain_points", float(gain.mean()), "points", 6.0)
    yield Row("unseen_wording_gain_low", low, "points", 0.0)
    yield Row("unseen_wording_gain_high", high, "points")
    for name, key, target in (
        ("unseen_gap_points", Key("joint", default.retriever, "iid", K), 2.0),
        ("unseen_gap_routerlora_points", Key("routerlora", PUBLISHED_RETRIEVER, "iid", K), None),
    ):
        yield Row(name, float(router_gap(board, key).mean()), "points", target, "lower")


def details(board: Board) -> Iterator[Row]:
    """Everything else, for the JSON."""
    for key in sorted(board.marks):
        yield from line_rows(board, key)
    yield from _gain_rows(board)
    for key in sorted(board.marks):
        if board.marks[key][0].seen is not None and key.k == K and key.setting != "wordings":
            name = "_".join(["unseen_gap", key.method, key.retriever, key.setting, "points"])
            yield from _with_interval(name, router_gap(board, key), better="lower")


def line_rows(board: Board, key: Key) -> Iterator[Row]:
    """Mean and spread; for k = 3 also by family, and what the gate looked at."""
    yield Row(str(key), board.mean(key), "%")
    marks = board.marks[key]
    if len(marks) > 1:
        yield Row(f"{key}_sd", board.spread(key), "points", better="lower")
    if key.k not in (0, K):
        return
    if key.setting == "masked":
        yield Row(f"{key}_seen_wordings", board.mean(key, where=board.seen_wording), "%")
        yield Row(f"{key}_heldout_wordings", board.mean(key, where=~board.seen_wording), "%")
    for part in ("chosen", "seen", "unseen"):
        if getattr(marks[0], part) is not None:
            yield Row(f"{key}_{_PARTS[part]}", board.mean(key, part), "%")
    for part in ("second_pass", "extra_tokens"):
        if getattr(marks[0], part) is not None:
            yield Row(f"{key}_{part}", board.mean(key, part), _UNITS[part], better="lower")
    for family in sorted(set(board.zoo.families.values())):
        yield Row(f"{key}_family_{family}", board.family(key, family), "%")


_PARTS: Final = {
    "chosen": "weight_on_right_adapter",
    "seen": "tasks_seen_by_router",
    "unseen": "tasks_unseen_by_router",
}
_UNITS: Final = {"second_pass": "% of prompts", "extra_tokens": "% of tokens"}


def best_rival(board: Board) -> Key:
    """The best published baseline of RIVALS, the own adapter masked."""
    keys = [Key(name, PUBLISHED_RETRIEVER, "masked", K) for name in RIVALS]
    return max((key for key in keys if key in board.marks), key=board.mean)


def router_gap(board: Board, key: Key) -> Floats:
    """(T,) seen less unseen, over all wordings when every adapter may answer: each task is once
    seen and once not, so that whatever needs no router, Perfect selection too, cancels."""
    keys = [key] if key.setting == "masked" else _full(key)
    gaps = [board.tasks(one, "seen") - board.tasks(one, "unseen") for one in keys]
    total: Floats = sum(gaps[1:], gaps[0]) / len(gaps)
    return total


def _gain_rows(board: Board) -> Iterator[Row]:
    """What each part gives: every gate of ours under every retriever, against the best published
    baseline masked and against Selection in wordings that nobody knew."""
    rivals = {"masked": ("ood_gain", best_rival(board))}
    rivals["wordings"] = ("unseen_wording_gain", _selection("wordings"))
    for key in sorted(board.marks):
        if key.method in OURS and key.k == K and key.setting in rivals:
            name, rival = rivals[key.setting]
            gain = board.tasks(key) - board.tasks(rival)
            yield from _with_interval(f"{name}_{key.method}_{key.retriever}_points", gain)


def _all_wordings(board: Board, default: Default) -> Row:
    """Both kinds of wording, without a target."""
    ours = [board.mean(key) for key in _full(default.key("iid"))]
    perfect = [board.mean(key) for key in _full(_perfect("iid"))]
    return Row("iid_vs_perfect_all_wordings", sum(ours) / sum(perfect), "of Perfect selection")


def _full(key: Key) -> list[Key]:
    """The same line in the settings where every adapter may answer; each counts half."""
    both: tuple[Setting, ...] = ("iid", "wordings")
    return [Key(key.method, key.retriever, setting, key.k) for setting in both]


def _with_interval(name: str, differences: Floats, better: Better = "higher") -> Iterator[Row]:
    low, high = interval(differences)
    yield Row(name, float(differences.mean()), "points", better=better)
    yield Row(f"{name}_low", low, "points", better=better)
    yield Row(f"{name}_high", high, "points", better=better)


def _selection(setting: Setting) -> Key:
    return Key("selection", PUBLISHED_RETRIEVER, setting, K)


def _perfect(setting: Setting) -> Key:
    return Key("perfect", "", setting, 0)
