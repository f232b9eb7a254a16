"""The console script: runs a command and turns every error into one line and an exit code.

Exit codes: those of ramole_core.errors, 2 for wrong usage, 130 after Ctrl-C, a quiet 1 when the
reader of stdout went away. With `--json` the error also stands on stdout:
{"error": {"code", "message"}}, with the gate's "reason" for an adapter that was refused.
"""

import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from producer.cli import cli
from ramole_core.errors import (
    AdapterRefusedError,
    InvalidInputError,
    RamoleError,
    UnavailableError,
)

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 1  # as click has it
_NOT_WRITTEN: Final = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(args: Sequence[str] | None = None) -> int:
    """Runs `ramole` with `args` (by default those of the process); returns the exit code."""
    args = sys.argv[1:] if args is None else list(args)
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        return _run(args)
    except OSError as e:  # of stdout: nothing more is written there, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):
            return EXIT_BROKEN_PIPE
        message = f"stdout cannot be written: {e.strerror or e}; send it elsewhere"
        return _report(args, UnavailableError.code, message, UnavailableError.exit_code)


def _run(args: Sequence[str]) -> int:
    """The exit code. Raises OSError when stdout cannot be written."""
    try:
        code = cli.main(args, prog_name="ramole", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except click.ClickException as e:
        e.show()
        _echo_error(args, InvalidInputError.code, e.format_message())
        return e.exit_code
    except AdapterRefusedError as e:
        return _report(args, e.code, str(e), e.exit_code, reason=e.reason)
    except RamoleError as e:
        return _report(args, e.code, str(e), e.exit_code)
    except Exception as e:
        if isinstance(e, OSError) and _is_of_stdout(e):
            raise
        return _report(args, "internal", _unexpected(e), 1)


def _is_of_stdout(error: OSError) -> bool:
    """True for a write that failed and has no file's name; those to files have their own errors."""
    return error.filename is None and error.errno in _NOT_WRITTEN


def _report(args: Sequence[str], code: str, message: str, exit_code: int, **details: str) -> int:
    line = " ".join(message.split())
    click.echo(f"ramole: error: {line}", err=True)
    _echo_error(args, code, line, **details)
    return exit_code


def _echo_error(args: Sequence[str], code: str, message: str, **details: str) -> None:
    if "--json" in args:
        error = {"code": code, "message": message, **details}
        click.echo(json.dumps({"error": error}))  # ASCII: a file name may be no text


def _unexpected(error: Exception) -> str:
    if os.environ.get("RAMOLE_LOG_LEVEL") == "debug":
        traceback.print_exc()
    return (
        f"internal error: {type(error).__name__}: {error} "
        "(set RAMOLE_LOG_LEVEL=debug for a traceback)"
    )


if __name__ == "__main__":
    sys.exit(main())
