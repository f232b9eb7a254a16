"""Runs a training in a process of its own: this side knows no torch.

The process says on stderr, which it shares with us, how far it is; its one line on stdout is read
here. Ctrl-C ends it with us, and so does our death; until its result is stored nothing has changed.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from producer.embedded.child import tie_to_parent
from ramole_core.errors import UnavailableError
from ramole_core.settings import Settings
from ramole_core.training import TrainRetriever, TrainRouter

TRAIN_ARGV: Final = (sys.executable, "-m", "worker.train")


@dataclass(frozen=True)
class Finished:
    """How the process ended and what it printed on stdout."""

    exit_code: int
    output: str


def run_training(
    request: TrainRetriever | TrainRouter,
    settings: Settings,
    environment: Mapping[str, str] = os.environ,
) -> Finished:
    """Waits for the process, which takes its settings from `environment` and the home. Raises
    UnavailableError when a signal killed it, KeyboardInterrupt after Ctrl-C, unless it was past the
    point where it could be stopped."""
    env = {**environment, "RAMOLE_HOME": str(settings.home)}
    argv = [*TRAIN_ARGV, request.model_dump_json()]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, preexec_fn=_prepare()
        )
        exit_code = _ended(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if exit_code < 0:
        raise UnavailableError(
            f"the training process was killed by signal {-exit_code} (is memory short?): nothing "
            "was changed; run the same command again"
        )
    return Finished(exit_code, text)


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """The exit code; after Ctrl-C only when the training was done nevertheless."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        with suppress(ProcessLookupError):
            process.terminate()  # the terminal told it, too, if it was ready to hear
        if process.wait() == 0:
            return 0
        raise


def _prepare() -> Callable[[], None]:
    """What the process runs first: Ctrl-C is nothing to it until it can answer, SIGTERM ends it."""
    tie = tie_to_parent(signal.SIGTERM)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if tie is not None:
            tie()

    return prepare
