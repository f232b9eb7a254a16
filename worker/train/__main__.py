"""`python -m worker.train '<json>'`: one training run, of TrainRetriever or TrainRouter.

Stdout gets one line of JSON: TrainReport, or {"error": {"code", "message"}}. Progress and errors in
words go to stderr. Exit codes: those of ramole_core.errors; 130 and 143 when a signal ended it,
and then nothing was changed.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ramole_core.errors import InvalidInputError, RamoleError
from ramole_core.settings import Settings
from ramole_core.training import TrainReport, TrainRetriever, TrainRouter
from worker.train.context import TrainContext
from worker.train.interrupts import Interrupted, Interrupts
from worker.train.progress import Progress

Request = Annotated[TrainRetriever | TrainRouter, Field(discriminator="kind")]


def main(args: Sequence[str] | None = None) -> int:
    """Runs what the one argument asks for; returns the exit code."""
    progress = Progress(sys.stderr)
    interrupts = Interrupts()
    interrupts.install()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        request = read_request(sys.argv[1:] if args is None else args)
        report = train(request, progress, interrupts)
    except Interrupted as e:
        progress.say("ramole: interrupted: nothing was changed; run the same command again")
        return e.exit_code
    except RamoleError as e:
        return _failed(progress, e.code, str(e), e.exit_code)
    except Exception as e:
        return _failed(progress, "internal", _unexpected(e), 1)
    _print(report.model_dump_json())
    return 0


def read_request(args: Sequence[str]) -> Request:
    """The request that the argument holds. Raises InvalidInputError."""
    try:
        (text,) = args
        found: Request = TypeAdapter(Request).validate_json(text)
    except ValidationError as e:
        first: Any = e.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInputError(f"request: {where}: {first['msg']}") from e
    except ValueError as e:
        raise InvalidInputError(f"one argument is needed, not {len(args)}") from e
    return found


def train(request: Request, progress: Progress, interrupts: Interrupts) -> TrainReport:
    """Opens the store and hands the request to what trains its kind."""
    context = TrainContext.open(Settings.load(), progress, interrupts)
    # Torch takes seconds to import: the store is asked before.
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if isinstance(request, TrainRetriever):
        from worker.train import retriever

        return retriever.run(request, context)
    from worker.train import router

    return router.run(request, context)


def _failed(progress: Progress, code: str, message: str, exit_code: int) -> int:
    line = " ".join(message.split())
    progress.say(f"ramole: error: {line}")
    _print(json.dumps({"error": {"code": code, "message": line}}, ensure_ascii=False))
    return exit_code


def _unexpected(error: Exception) -> str:
    if os.environ.get("RAMOLE_LOG_LEVEL") == "debug":
        traceback.print_exc()
    return (
        f"internal error: {type(error).__name__}: {error} "
        "(set RAMOLE_LOG_LEVEL=debug for a traceback)"
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
