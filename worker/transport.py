"""What Celery reads from queues into which others may write: ids of ours, or nothing.

What is no message at all (no JSON, no envelope) would end the consumer and with it the process:
it has left the queue by then, so it is dropped and logged, without its content. On the embedded
broker's socket, which only this user reaches, Celery's own transport is used.
"""

import logging
from queue import Empty
from typing import Any, Final

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request
from kombu.transport import redis

logger = logging.getLogger(__name__)

_NOT_A_MESSAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_HEADERS: Final = ("lang", "task", "id")


class Channel(redis.Channel):
    """A channel that outlives garbage."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except _NOT_A_MESSAGE as e:
            logger.error("something in a queue is no message and is dropped: %s", type(e).__name__)
            raise Empty from e


class Transport(redis.Transport):
    """Redis with channels that outlive garbage."""

    Channel = Channel


class IdsOnly(Request):
    """A task and its positional arguments. What else a message may ask of Celery is not heard:
    links and chains (the worker would send them, into queues closed to the sender), a time to
    wait for (it would hold the message in memory), another name for the log."""

    def __init__(
        self,
        message: Any,
        body: Any = None,
        headers: Any = None,
        decoded: bool = False,
        **more: Any,
    ) -> None:
        try:
            arguments, _, _ = body if decoded else message.payload
            kept = {name: str(headers[name]) for name in _HEADERS}
            clean: tuple[Any, ...] = (list(arguments), {}, {})
        except _NOT_A_MESSAGE as e:
            raise InvalidTaskError("its body or its headers are not those of a task") from e
        super().__init__(message, body=clean, headers=kept, decoded=True, **more)
