"""Regexes written by strangers, matched in bounded time.

Python's `re` backtracks and can be made to run for years. Here the parsed expression is walked
with sets of positions instead (each part at each position once), so time is polynomial, and a
`Budget` shared by all patterns of one upload bounds it. Whether a text matches is the same as with
`re`; captures do not exist. Lookarounds, back references, inline flags, atomic groups and
possessive repeats are refused: no adapter needs them.
"""

import re
from collections.abc import Callable, Iterable
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final

from ramole_core.errors import AdapterRefusedError

MAX_PATTERN_CHARS: Final = 1000
# Some 1.2 s, and an upload may spend it twice; 560 linears with a long pattern take 0.12 million.
MAX_STEPS: Final = 1_000_000
_PLAIN: Final = re.compile(r"\^?[A-Za-z0-9_.]+\$?")
_CATEGORIES: Final[dict[Any, Callable[[str], bool]]] = {
    ops.CATEGORY_DIGIT: str.isdecimal,
    ops.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    ops.CATEGORY_SPACE: str.isspace,
    ops.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    ops.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    ops.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


class Budget:
    """How many steps the patterns of one upload may still take together."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Raises AdapterRefusedError when not that many are left."""
        self._left -= steps
        if self._left < 0:
            raise AdapterRefusedError(
                "unsafe_pattern", "the config's patterns take too long to match: simplify them"
            )


class SafePattern:
    """One expression. Raises AdapterRefusedError at building or matching, never anything else."""

    def __init__(self, text: str, budget: Budget) -> None:
        self._text = text
        self._budget = budget
        # Without repeats and branches nothing can backtrack, and `re` is a hundred times faster.
        self._plain = re.compile(rf"(.*\.)?({text})$") if _is_plain(text) else None
        self._tree: Any = None if self._plain else _parsed(text)

    def matches(self, name: str) -> bool:
        """As `re.fullmatch(text, name)`."""
        if self._plain is not None:
            return re.fullmatch(self._text, name) is not None
        return self._reaches_end(name, [0])

    def matches_suffix(self, name: str) -> bool:
        """As PEFT's `re.match(rf"(.*\\.)?({text})$", name)` for rank and alpha patterns."""
        if self._plain is not None:
            return self._plain.match(name) is not None
        return self._reaches_end(name, [0, *(i + 1 for i, c in enumerate(name) if c == ".")])

    def _reaches_end(self, name: str, starts: Iterable[int]) -> bool:
        walk = _Walk(name, self._budget)
        try:
            return any(len(name) in walk.sequence(self._tree, start) for start in starts)
        except RecursionError as e:
            raise _refused(self._text, "is nested too deeply") from e


class _Walk:
    """All positions that parts of an expression reach in one text."""

    def __init__(self, text: str, budget: Budget) -> None:
        self._text = text
        self._budget = budget
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def sequence(self, items: Any, start: int) -> frozenset[int]:
        """Positions after matching `items` one after another from `start`."""
        reached = frozenset((start,))
        for item in items:
            self._budget.spend(len(reached))
            reached = frozenset().union(*(self._after(item, position) for position in reached))
            if not reached:
                break
        return reached

    def _after(self, item: Any, start: int) -> frozenset[int]:
        """Positions after one part, each (part, position) worked out once."""
        key = (id(item), start)
        if key not in self._known:
            self._known[key] = self._computed(item, start)
        return self._known[key]

    def _computed(self, item: Any, start: int) -> frozenset[int]:
        op, value = item
        if op is ops.BRANCH:
            self._budget.spend(len(value[1]))
            return frozenset().union(*(self.sequence(branch, start) for branch in value[1]))
        if op is ops.SUBPATTERN:
            return self.sequence(value[3], start)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            low, high, body = value
            return self._repeated(low, high, body, start)
        if op is ops.AT:
            return frozenset((start,)) if self._stands_at(value, start) else frozenset()
        if op is ops.IN:
            self._budget.spend(len(value) // 8)  # a member takes a fraction of a step's time
        met = start < len(self._text) and _accepts(op, value, self._text[start])
        return frozenset((start + 1,)) if met else frozenset()

    def _stands_at(self, anchor: Any, position: int) -> bool:
        if anchor in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING):
            return position == 0
        if anchor in (ops.AT_END, ops.AT_END_STRING):
            return position == len(self._text)
        around = self._text[max(position - 1, 0) : position], self._text[position : position + 1]
        before, after = (bool(c) and _CATEGORIES[ops.CATEGORY_WORD](c) for c in around)
        return (before != after) == (anchor is ops.AT_BOUNDARY)

    def _repeated(self, low: int, high: int, body: Any, start: int) -> frozenset[int]:
        """Positions only grow, so the sets settle within len(text) + 2 rounds."""
        reached, ends, count = frozenset((start,)), frozenset[int](), 0
        while reached:
            if count >= low:
                reached -= ends
                ends |= reached
            if count == high:
                break
            self._budget.spend(len(reached))
            further = frozenset().union(*(self.sequence(body, position) for position in reached))
            if further == reached and count < low:
                return reached  # a step maps this set to itself, so every later count ends here
            reached, count = further, count + 1
        return ends


def _accepts(op: Any, value: Any, character: str) -> bool:
    if op is ops.ANY:
        return character != "\n"
    if op is ops.LITERAL:
        return ord(character) == value
    if op is ops.NOT_LITERAL:
        return ord(character) != value
    if op is ops.RANGE:
        return value[0] <= ord(character) <= value[1]
    if op is ops.CATEGORY:
        return _CATEGORIES[value](character)
    negated = value[0][0] is ops.NEGATE  # op is IN
    return any(_accepts(o, v, character) for o, v in value[negated:]) != negated


def _is_plain(text: str) -> bool:
    return len(text) <= MAX_PATTERN_CHARS and _PLAIN.fullmatch(text) is not None


def _parsed(text: str) -> Any:
    if len(text) > MAX_PATTERN_CHARS:
        raise _refused(text, f"is longer than {MAX_PATTERN_CHARS} characters")
    try:
        tree = _parser.parse(text)
        if tree.state.flags & ~int(re.UNICODE):
            raise _refused(text, "sets flags")
        _check(text, tree)
    except (re.error, OverflowError, ValueError) as e:
        raise _refused(text, f"is not a regular expression: {e}") from e
    except RecursionError as e:
        raise _refused(text, "is nested too deeply") from e
    return tree


def _check(text: str, items: Any) -> None:
    """Refuses every part that `_Walk` does not know."""
    for op, value in items:
        if op is ops.BRANCH:
            for branch in value[1]:
                _check(text, branch)
        elif op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            _check(text, value[2])
        elif op is ops.SUBPATTERN and not value[1] and not value[2]:
            _check(text, value[3])
        elif op not in (ops.ANY, ops.LITERAL, ops.NOT_LITERAL, ops.IN, ops.AT):
            raise _refused(text, f"uses {str(op).lower()}, which is not allowed here")


def _refused(text: str, why: str) -> AdapterRefusedError:
    return AdapterRefusedError("unsafe_pattern", f"the pattern {text[:80]!r} {why}")
