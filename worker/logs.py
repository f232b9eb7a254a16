"""Structured logs: one JSON object a line on stderr, with the job and shard being worked on."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers.utils import logging as transformers_logging

_work: ContextVar[dict[str, str] | None] = ContextVar("work", default=None)


@contextmanager
def working_on(**ids: str) -> Iterator[None]:
    """Every line logged inside carries these ids (`job`, `shard`, `upload`, `request`)."""
    token = _work.set({**(_work.get() or {}), **ids})
    try:
        yield
    finally:
        _work.reset(token)


class JsonFormatter(logging.Formatter):
    """Fields: time (UTC), level, logger, message, then the ids, then `error` with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_work.get() or {}),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(level: str) -> None:
    """Sends everything of this process to stderr as JSON; libraries from warning upward."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for name in ("ramole_core", "worker"):
        logging.getLogger(name).setLevel(level.upper())
    transformers_logging.disable_progress_bar()  # its bars are no JSON
