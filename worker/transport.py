"""Celery's Redis transport for queues into which others may write.

What is no message at all (no JSON, no envelope) would end the consumer and with it the process:
it has left the queue by then, so it is dropped and logged, without its content. On the embedded
broker's socket, which only this user reaches, Celery's own transport is used.
"""

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis

logger = logging.getLogger(__name__)

_NOT_A_MESSAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


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
