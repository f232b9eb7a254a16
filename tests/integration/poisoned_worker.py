"""A worker that dies (-9) in every step that a prompt with POISON in it takes part in."""

import os
import signal
import sys
from typing import Any

from ramole_core.engine.runner import Runner
from worker.__main__ import main

POISON = "this prompt kills its process"


def arm() -> None:
    """Replaces the runner's step."""
    original = Runner.step

    def deadly(self: Runner, running: Any, cache: Any) -> Any:
        if any(POISON in (sequence.request.prompt or "") for sequence in running):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, running, cache)

    Runner.step = deadly  # type: ignore[method-assign]


if __name__ == "__main__":
    arm()
    sys.exit(main())
