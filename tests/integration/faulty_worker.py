"""A worker whose surroundings fail on command: python -m tests.integration.faulty_worker FOLDER

While FOLDER/disk exists, its first line names a folder below which the disk is full. As long as
FOLDER/memory has lines, each shard that is loaded takes one away and runs out of memory. While
FOLDER/blind exists, the worker brings no job back that Redis has lost: it neither looks for one nor
finds one by a message that it has in hand.
"""

import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any

from worker.__main__ import main
from worker.ledger import Ledger
from worker.lifecycle import JobDesk
from worker.shards import ShardRunner


def arm(folder: Path) -> None:
    """Replaces what the operating system and the memory would refuse."""
    disk, memory, blind = folder / "disk", folder / "memory", folder / "blind"
    open_path, make_folder, link, load = Path.open, os.mkdir, os.link, ShardRunner._load
    scan, claim, taking = JobDesk.scan, Ledger.claim, threading.Lock()

    def check(path: Any) -> None:
        if disk.exists() and str(path).startswith(disk.read_text()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wxa"):
            check(self)
        return open_path(self, mode, *args, **kwargs)

    def made(path: Any, *args: Any, **kwargs: Any) -> None:
        check(path)
        make_folder(path, *args, **kwargs)

    def linked(source: Any, target: Any) -> None:
        check(target)
        link(source, target)

    def loaded(self: ShardRunner, *args: Any) -> Any:
        with taking:
            lines = memory.read_text().splitlines() if memory.exists() else []
            if lines:
                memory.write_text("\n".join(lines[1:]))
                raise MemoryError
        return load(self, *args)

    def scanned(self: JobDesk) -> None:
        if not blind.exists():
            scan(self)

    def claimed(self: Ledger, *args: Any) -> Any:
        found = claim(self, *args)
        return "busy" if found == "unknown" and blind.exists() else found

    Path.open = opened  # type: ignore[method-assign, assignment]
    os.mkdir, os.link = made, linked  # type: ignore[assignment]
    ShardRunner._load, JobDesk.scan = loaded, scanned  # type: ignore[method-assign]
    Ledger.claim = claimed  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(Path(sys.argv[1]))
    sys.exit(main())
