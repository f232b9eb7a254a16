"""A worker whose engine hangs for ever in every step that a prompt with STUCK in it takes part in.
It counts as stuck after seconds, not minutes."""

import sys
import threading
from typing import Any

import worker.services
from ramole_core.engine.runner import Runner
from worker.__main__ import main

STUCK = "this prompt never ends"


def arm() -> None:
    """Replaces the runner's step."""
    worker.services.STALL_SECONDS = 8.0  # type: ignore[misc]
    original = Runner.step

    def hanging(self: Runner, running: Any, cache: Any) -> Any:
        if any(STUCK in (sequence.request.prompt or "") for sequence in running):
            threading.Event().wait()
        return original(self, running, cache)

    Runner.step = hanging  # type: ignore[method-assign]


if __name__ == "__main__":
    arm()
    sys.exit(main())
