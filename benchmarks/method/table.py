"""What a reader sees of the board: one line a method and retriever, its settings side by side."""

from collections.abc import Iterator
from typing import Final

from benchmarks.method.rows import K
from benchmarks.method.scores import SETTINGS, Board, Key

ORDER: Final = (
    "base",
    "perfect",
    "oracle",
    "selection",
    "fusion",
    "mixture",
    "soup",
    "moe",
    "arrow",
    "routerlora",
    "prior",
    "joint",
    "cascade",
)


def table(board: Board) -> str:
    """Exact match in per cent at k = 3, ± the standard deviation over seeds where something is
    random; `second pass`: share of the prompts that are decoded again, once for each expert."""
    head = ("method", "retriever", *SETTINGS, "second pass")
    lines = [head, *_lines(board)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def _lines(board: Board) -> Iterator[tuple[str, ...]]:
    found = {(key.method, key.retriever, key.k) for key in board.marks if key.k in (0, K)}
    for method, retriever, k in sorted(found, key=lambda f: (ORDER.index(f[0]), f[1])):
        keys = [Key(method, retriever, setting, k) for setting in SETTINGS]
        yield (method, retriever or "-", *(_cell(board, key) for key in keys), _cost(board, keys))


def _cell(board: Board, key: Key) -> str:
    spread = f" ± {board.spread(key):.1f}" if len(board.marks[key]) > 1 else ""
    return f"{board.mean(key):.1f}{spread}"


def _cost(board: Board, keys: list[Key]) -> str:
    """One share for each setting; empty without a second pass."""
    if board.marks[keys[0]][0].second_pass is None:
        return ""
    return " / ".join(f"{board.mean(key, 'second_pass'):.0f}" for key in keys) + " %"
