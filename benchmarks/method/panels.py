"""Which lines of the board the README's figure shows, in which order and under which names."""

from collections.abc import Iterator
from typing import Final

from benchmarks.method.figure import Bar, Group, Panel
from benchmarks.method.rows import Default, K
from benchmarks.method.scores import SETTINGS, Board, Key, Setting, interval
from benchmarks.method.suite import PUBLISHED_RETRIEVER

TITLES: Final[dict[Setting, str]] = {
    "iid": "Known wordings, new words",
    "wordings": "Unseen wordings",
    "masked": "Own adapter masked",
}
PUBLISHED: Final[dict[str, str]] = {  # label -> method
    "AdapterSoup": "soup",
    "MoE top-3": "moe",
    "RouterLoRA": "routerlora",
    "Arrow": "arrow",
    "Mixture": "mixture",
    "Fusion": "fusion",
    "Selection": "selection",
}
OURS: Final[dict[str, tuple[str, str]]] = {  # label -> method, retriever
    "Prior over MiniLM": ("prior", PUBLISHED_RETRIEVER),
    "+ whitened": ("prior", "whitened"),
    "+ fine-tuned": ("prior", "tuned-whitened"),
    "+ affinity": ("prior", "trained"),
    "+ cascade": ("cascade", "trained"),
}


def panels(board: Board, default: Default) -> list[Panel]:
    """One for each setting, with the same bars in the same order: each of ours adds one part."""
    return [
        Panel(
            TITLES[setting],
            list(_bars(board, default, setting)),
            {"perfect selection": board.mean(Key("perfect", "", setting, 0))},
        )
        for setting in SETTINGS
    ]


def _bars(board: Board, default: Default, setting: Setting) -> Iterator[Bar]:
    for label, method in PUBLISHED.items():
        retriever = "" if method == "moe" else PUBLISHED_RETRIEVER
        yield _bar(board, label, "published", Key(method, retriever, setting, K), False)
    for label, (method, retriever) in OURS.items():
        key = Key(method, retriever, setting, K)
        yield _bar(board, label, "ours", key, key == default.key(setting))


def _bar(board: Board, label: str, group: Group, key: Key, bold: bool) -> Bar:
    tasks = board.tasks(key)
    low, high = interval(tasks)
    return Bar(label, group, float(tasks.mean()), low, high, bold)
