"""The console script: runs a command and turns every error into one line and an exit code.

Exit codes: those of ramole_core.errors, 2 for wrong usage, 130 after Ctrl-C, a quiet 1 when the
reader of stdout went away. With `--json` the error also stands on stdout:
{"error": {"code", "message"}}, with the gate's "reason" for an adapter that was refused.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from producer.cli import cli
from ramole_core.errors import AdapterRefusedError, InvalidInputError, RamoleError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 1  # as click has it


def main(args: Sequence[str] | None = None) -> int:
    """Runs `ramole` with `args` (by default those of the process); returns the exit code."""
    args = sys.argv[1:] if args is None else list(args)
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        code = cli.main(args, prog_name="ramole", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
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
        return _report(args, "internal", _unexpected(e), 1)


def _report(args: Sequence[str], code: str, message: str, exit_code: int, **details: str) -> int:
    line = " ".join(message.split())
    click.echo(f"ramole: error: {line}", err=True)
    _echo_error(args, code, line, **details)
    return exit_code


def _echo_error(args: Sequence[str], code: str, message: str, **details: str) -> None:
    if "--json" in args:
        error = {"code": code, "message": message, **details}
        click.echo(json.dumps({"error": error}, ensure_ascii=False))


def _unexpected(error: Exception) -> str:
    if os.environ.get("RAMOLE_LOG_LEVEL") == "debug":
        traceback.print_exc()
    return (
        f"internal error: {type(error).__name__}: {error} "
        "(set RAMOLE_LOG_LEVEL=debug for a traceback)"
    )


if __name__ == "__main__":
    sys.exit(main())
