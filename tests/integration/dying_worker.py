"""A worker that kills itself (-9) once, at the point that its command line names.

    python -m tests.integration.dying_worker POINT MARKER_FILE

The marker file is made before the death, so that the restarted worker lives. While it is there,
nobody dies.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ramole_core.engine.engine import Engine
from worker.__main__ import main
from worker.ledger import Ledger
from worker.shards import ShardRunner

POINTS: dict[str, tuple[type, str]] = {
    "claimed": (ShardRunner, "run"),  # before the work, after the claim
    "generating": (Engine, "step"),  # the tenth decode step
    "written": (Ledger, "finish"),  # the output exists, nothing knows it
}


def arm(point: str, marker: Path) -> None:
    """Replaces one method by one that dies instead of running, the first time it is due."""
    owner, name = POINTS[point]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        due = not marker.exists() and (point != "generating" or not self.idle)
        calls += due
        if due and calls >= (10 if point == "generating" else 1):
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    arm(sys.argv[1], Path(sys.argv[2]))
    sys.exit(main())
