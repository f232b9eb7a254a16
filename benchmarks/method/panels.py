"""Which lines of the board the README's figure shows, in which order and under which names."""

from collections.abc import Iterator

from benchmarks.method.cases import SETTINGS, Setting
from benchmarks.method.figure import Bar, Group, Panel
from benchmarks.method.rows import Default
from benchmarks.method.scores import Board, Key, interval
from benchmarks.method.suite import PUBLISHED_RETRIEVER

K = 3
TITLES: dict[Setting, str] = {
    "iid": "Every adapter may answer",
    "masked": "The prompt's own adapter is masked",
}
PUBLISHED: dict[str, tuple[str, int]] = {  # label -> method, k
    "Base model": ("base", 0),
    "MoE gate, top-1": ("moe", 1),
    "MoE gate, top-3": ("moe", 3),
    "AdapterSoup": ("soup", K),
    "Fusion": ("fusion", K),
    "Arrow": ("arrow", K),
    "Mixture": ("mixture", K),
    "RouterLoRA": ("routerlora", K),
    "Selection": ("selection", K),
}
OURS: dict[str, str] = {  # label -> method
    "Prior": "prior",
    "Prior + router": "joint",
    "Cascade": "cascade",
    "Router + cascade": "joint-cascade",
}
UNRETRIEVED = ("base", "moe")


def panels(board: Board, default: Default) -> list[Panel]:
    """The two panels, published methods first; both show the same lines in the same order, that
    of the masked setting."""
    order = {bar.label: bar.value for bar in _bars(board, default, "masked")}
    return [
        Panel(
            TITLES[setting],
            sorted(
                _bars(board, default, setting), key=lambda b: (b.group == "ours", order[b.label])
            ),
            _ceilings(board, default, setting),
        )
        for setting in SETTINGS
    ]


def _bars(board: Board, default: Default, setting: Setting) -> Iterator[Bar]:
    for label, (method, k) in PUBLISHED.items():
        retriever = "" if method in UNRETRIEVED else PUBLISHED_RETRIEVER
        yield from _bar(board, label, "published", Key(method, retriever, setting, k), False)
    retrievers = {PUBLISHED_RETRIEVER: "MiniLM", default.retriever: "trained"}
    for retriever, words in retrievers.items():
        for label, method in OURS.items():
            key = Key(method, retriever, setting, K)
            bold = (method, retriever) == (default.gate, default.retriever)
            yield from _bar(board, f"{label}, {words} retriever", "ours", key, bold)


def _bar(board: Board, label: str, group: Group, key: Key, bold: bool) -> Iterator[Bar]:
    """Nothing for a line that was not measured."""
    if key in board.marks:
        tasks = board.tasks(key)
        low, high = interval(tasks)
        yield Bar(label, group, float(tasks.mean()), low, high, bold)


def _ceilings(board: Board, default: Default, setting: Setting) -> dict[str, float]:
    if setting == "iid":
        return {"perfect selection": board.mean(Key("perfect", "", setting, 0))}
    return {"best of the three": board.mean(Key("oracle", default.retriever, setting, K))}
