"""Hostile inputs one after another in this fresh process, each with its time and memory.

`python -m tests.measured adapters FOLDER` judges the folders that `FOLDER/cases.json` names, as the
producer does and as a worker does that finds them in staging; `python -m tests.measured bombs`
gives the large inputs of BOMBS to their parsers. Prints one JSON line per case. An audit hook notes
whatever would run code, reach the network or open a file outside the folder; DEEDS are there to be
seen by it. What hangs ends the process, which then says where.
"""

import faulthandler
import json
import os
import pickle
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

FORBIDDEN = re.compile(
    r"exec|compile|import|ctypes\.|pickle\.|marshal\.|code\.|subprocess\."
    r"|os\.(system|exec|fork|posix_spawn)|socket\.|urllib\.|http\.|ftplib\.|os\.(chmod|chown|symlink|putenv)"
)
HANG_SECONDS = 60  # of the clock on the wall, for one case
DEEDS: dict[str, Callable[[], object]] = {
    "unpickles": lambda: pickle.loads(pickle.dumps(Path)),  # noqa: S301
    "executes": lambda: exec("pass"),
    "starts a program": lambda: os.system("true"),
    "imports": lambda: __import__("colorsys"),
    "connects": lambda: socket.socket().close(),
    "opens elsewhere": lambda: Path("/etc/passwd").read_bytes(),
}
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jsonl: two million messages": (
        "jsonl", lambda: b'{"messages":[' + b"{}," * 2_300_000 + b"{}]}",
    ),
    "jsonl: a message of a million keys": (
        "jsonl", lambda: b'{"messages":[{' + _keys(600_000) + b"}]}",
    ),
    "jsonl: a million keys": ("jsonl", lambda: b"{" + _keys(600_000) + b"}"),
    "jsonl: two million names": (
        "jsonl", lambda: b'{"prompt":"x","exclude_adapters":[' + b"1," * 3_000_000 + b"1]}",
    ),
    "jsonl: a million adapters": (
        "jsonl", lambda: b'{"prompt":"x","adapters":[' + b"{}," * 2_300_000 + b"{}]}",
    ),
    "jsonl: an adapter of a million keys": (
        "jsonl", lambda: b'{"prompt":"x","adapters":[{' + _keys(600_000) + b"}]}",
    ),
    "jsonl: a line of 200 MB": ("jsonl", lambda: b"[" * (200 << 20)),
    "jsonl: a number of 7 MB": ("jsonl", lambda: b'{"id":' + b"1" * 7_000_000 + b"}"),
    "csv: a row without end": (
        "csv_table", lambda: b'prompt,a\nx,"\n' + b'",xxxxxxx,"\n' * 9_000_000,
    ),
    "csv: seven million fields": ("csv_table", lambda: b"prompt\n" + b"," * 7_000_000),
    "csv: a header of seven million fields": ("csv_table", lambda: b"a," * 3_500_000),
    "text: a line of 200 MB": ("text", lambda: b"x" * (200 << 20)),
    "samples: 64 MB of short lines": ("samples", lambda: b"ab\n" * (21 << 20)),
    "samples: 60 MB of newlines": ("samples", lambda: b"\n" * (60 << 20)),
    "samples: one of 60 MB": ("samples", lambda: b'"' + b"x" * (60 << 20) + b'"'),
    "config: a million lists": ("config", lambda: b'{"a":[' + b"[]," * 1_390_000 + b"[]]}"),
    "config: half a million keys": ("config", lambda: b"{" + _keys(330_000) + b"}"),
    "header: half a million tensors": ("header", lambda: b"\0{" + _keys(300_000, b"{}") + b"}"),
    "header: a million lists": ("header", lambda: b'\0{"a":[' + b"[]," * 1_390_000 + b"[]]}"),
    "manifest: a trillion shards": (
        "Manifest", lambda: _manifest().replace(b'"num_shards":1', b'"num_shards":1000000000000'),
    ),
    "settings: nested": ("settings_file", lambda: b"x=" + b"[" * 1_000_000),
    "journal: nested": ("journal", lambda: b"[" * 1_000_000),
    "vector: a lying shape": (
        "vector", lambda: _vector().replace(b"(4,), }           ", b"(999999999999,), }"),
    ),
}  # fmt: skip


def _keys(number: int, value: bytes = b"0") -> bytes:
    return b",".join(b'"%d":%s' % (n, value) for n in range(number))


def _manifest() -> bytes:
    from tests.parsers import SEEDS

    return SEEDS["Manifest"][0]


def _vector() -> bytes:
    from tests.parsers import SEEDS

    return SEEDS["vector"][0]


class Watch:
    """What happens while it is on."""

    def __init__(self, inside: Path) -> None:
        self._inside = str(inside)
        self.seen: list[str] = []
        self._on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        outside = event == "open" and isinstance(arguments[0], str | bytes | Path)
        outside = outside and "/" in str(arguments[0])  # else below a folder that is open
        outside = outside and not str(arguments[0]).startswith(self._inside)
        if FORBIDDEN.match(event) or outside:
            self.seen.append(f"{event} {arguments[0]!r:.80}")

    @contextmanager
    def on(self) -> Iterator[None]:
        self.seen.clear()
        self._on = True
        try:
            yield
        finally:
            self._on = False


def measured(run: Callable[[], object], watch: Watch) -> dict[str, Any]:
    """Seconds of work, megabytes above what was there before, what was seen."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before, begin = _status("VmRSS"), time.process_time()  # the machine may be busy with others
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    with watch.on():
        answer = run()
    faulthandler.cancel_dump_traceback_later()
    seconds = time.process_time() - begin
    megabytes = (_status("VmHWM") - before) / 1024
    return {"seconds": seconds, "megabytes": megabytes, "seen": list(watch.seen), "answer": answer}


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def adapters(folder: Path) -> None:
    """The first case is judged unwatched: it loads what loads late."""
    from ramole_core.adapters.base_info import BaseInfo
    from ramole_core.adapters.gate import Limits, check_folder
    from ramole_core.adapters.reception import receive
    from ramole_core.adapters.registry import Registry
    from ramole_core.errors import AdapterRefusedError
    from ramole_core.store.directory import DirectoryStore

    base = BaseInfo.model_validate_json((folder / "base.json").read_bytes())
    limits, store = Limits(1 << 30, 256), DirectoryStore(folder / "store")

    def producer(case: str) -> str:
        try:
            check_folder(folder / case, base, limits)
        except AdapterRefusedError as e:
            return e.reason
        return "passes"

    def worker(case: str) -> str:
        describe: Any = lambda ref, samples: None  # noqa: E731
        verdict = receive(case, store, Registry(store), base, limits, describe, folder / "work")
        return verdict.error.reason if verdict.error else verdict.status

    watch = Watch(folder)
    for number, (case, staged) in enumerate(json.loads((folder / "cases.json").read_text())):
        sides = {"producer": producer} | ({"worker": worker} if staged else {})
        for side, judge in sides.items():
            found = measured(partial(judge, case), watch)
            if number:
                print(json.dumps({"case": case, "side": side} | found), flush=True)
    for name, deed in DEEDS.items():
        found = measured(deed, watch) | {"answer": ""}
        print(json.dumps({"case": name, "side": "deed"} | found), flush=True)


def bombs() -> None:
    """Every bomb, built before it is measured."""
    from tests.parsers import PARSERS

    watch = Watch(Path("/"))
    for name, (parser, build) in BOMBS.items():
        data = build()
        found = measured(partial(PARSERS[parser], data), watch)
        print(json.dumps({"case": name} | found), flush=True)


if __name__ == "__main__":
    adapters(Path(sys.argv[2])) if sys.argv[1] == "adapters" else bombs()
