"""The producer's side of Redis: send messages by name, read progress and heartbeats.

Every call ends within CALL_SECONDS even when Redis is frozen, behind a black hole or behind a
name server that does not answer. Nothing decided here is the truth; that lies in the store.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from ramole_core import messages
from ramole_core.errors import BrokerUnavailableError, ConfigError
from ramole_core.messages import AboutWorker
from ramole_core.settings import Settings, redacted

CONNECT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 3.0
CALL_SECONDS: Final = 7.0

_CONTROL_LIST: Final = f"{messages.KEY_PREFIX}celery:{messages.CONTROL_QUEUE}"
_NEEDED: Final = (  # one of each kind; what Celery keeps beside the list shows at the first message
    ("LPUSH", _CONTROL_LIST, ""),
    ("HGETALL", messages.progress("x")),
    ("ZRANGEBYSCORE", messages.WORKERS, "0", "0"),
    ("GET", messages.worker("x")),
    ("TIME",),
)
_ACL_HINT: Final = "; its ACL is too narrow, see deploy/redis/users.acl.template"

T = TypeVar("T")


class Broker:
    """One connection pool, made at the first call. Raises BrokerUnavailableError everywhere."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self._app: Any = None

    def check(self) -> None:
        """Finds out within seconds whether Redis is there, and says what to do when it is not."""
        settings = self._settings
        if settings.embedded_broker and not settings.socket_path.exists():
            raise BrokerUnavailableError(
                f"the embedded system is not running (no {settings.socket_path}); "
                "start it with `ramole up`, or set RAMOLE_BROKER_URL"
            )
        self._call(lambda: self._redis().ping())

    def send(self, task: str, *ids: str) -> None:
        """Enqueues a control message; on return Redis has it."""
        self._call(lambda: self._celery().send_task(task, args=ids, queue=messages.CONTROL_QUEUE))

    def progress(self, job_id: str) -> dict[str, str]:
        """Shard -> "done OK FAILED" or "run ANSWERED FAILED", of the shards begun."""
        found = self._call(lambda: self._redis().hgetall(messages.progress(job_id)))
        return {str(shard): str(text) for shard, text in found.items()}

    def live_workers(self, since: float = 0.0) -> list[str]:
        """Workers whose heartbeat is fresh and not older than `since` (Redis' clock: `now`)."""
        oldest = max(self.now() - messages.ALIVE_SECONDS, since)
        found = self._call(lambda: self._redis().zrangebyscore(messages.WORKERS, oldest, "+inf"))
        return [str(name) for name in found]

    def about(self, worker: str) -> AboutWorker | None:
        """What a worker says of itself; None when it is gone, or of another version."""
        text = self._call(lambda: self._redis().get(messages.worker(worker)))
        try:
            return AboutWorker.model_validate_json(text or "")
        except ValidationError:
            return None

    def now(self) -> float:
        """Unix time by Redis' clock, which all heartbeats are stamped with."""
        seconds, microseconds = self._call(lambda: self._redis().time())
        return float(seconds) + float(microseconds) / 1e6

    def info(self) -> dict[str, Any]:
        """What the server says of itself, with its maxmemory-policy."""
        return dict(self._call(lambda: self._redis().info()))

    def check_rights(self) -> None:
        """Raises when the ACL of this user refuses something that a producer does.

        The commands are queued and never run: a refusal comes when a command is queued.
        """
        refused = self._call(lambda: _refused(self._redis(), _NEEDED))
        if refused:
            where = redacted(self._settings.redis_url)
            raise BrokerUnavailableError(
                f"Redis at {where} (RAMOLE_BROKER_URL): refused: {', '.join(refused)}{_ACL_HINT}"
            )

    def _redis(self) -> Any:
        if self._client is None:
            self._client = _redis_client(self._settings)
        return self._client

    def _celery(self) -> Any:
        if self._app is None:
            self._app = _celery_app(self._settings)
        return self._app

    def _call(self, action: Callable[[], T]) -> T:
        import kombu.exceptions
        import redis

        try:
            return within(CALL_SECONDS, action)
        except (redis.RedisError, kombu.exceptions.KombuError, OSError) as e:
            raise BrokerUnavailableError(self._message(e)) from e

    def _message(self, error: BaseException) -> str:
        settings, hint = self._settings, _hint(error)
        if settings.embedded_broker:
            why = f"({_reason(error)}){hint or '; start it with `ramole up`'}"
            return f"the embedded system under {settings.home} does not answer {why}"
        where = redacted(settings.redis_url)
        return f"Redis at {where} (RAMOLE_BROKER_URL): {_reason(error)}{hint}"


def within(seconds: float, action: Callable[[], T]) -> T:
    """The action's result or error. Raises TimeoutError after `seconds`; the thread is left.

    Socket time limits do not cover name look-ups and chains of retries; this does.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((action(), None))
        except BaseException as e:
            outcome.append((None, e))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    result: T = value
    return result


def _refused(client: Any, commands: Iterable[tuple[str, ...]]) -> list[str]:
    """Those that the ACL does not let this user queue; none of them is run."""
    from redis.exceptions import NoPermissionError

    refused = []
    connection = client.connection_pool.get_connection()
    try:
        for command in (("MULTI",), *commands):
            connection.send_command(*command)
            try:
                connection.read_response()
            except NoPermissionError:
                refused.append(" ".join(command[:2]))
                if command == ("MULTI",):
                    break
    finally:
        connection.disconnect()  # discards what was queued
        client.connection_pool.release(connection)
    return refused


def _redis_client(settings: Settings) -> Any:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        **messages.redis_options(settings),
    }
    try:
        return redis.Redis.from_url(settings.redis_url, **options)
    except ValueError as e:
        raise ConfigError(
            "RAMOLE_BROKER_URL: use redis://, rediss:// or unix:// with host, port and database"
        ) from e


def _celery_app(settings: Settings) -> Any:
    from celery import Celery
    from kombu.entity import Queue

    app = Celery("ramole.producer", set_as_current=False)
    app.conf.update(messages.celery_settings(settings))
    queue: Any = Queue
    app.conf.task_queues = [queue(messages.CONTROL_QUEUE)]
    app.conf.task_default_queue = messages.CONTROL_QUEUE  # as the workers: the ACL names its keys
    app.conf.broker_transport_options |= {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
    }
    app.conf.task_publish_retry_policy |= {"max_retries": 1}
    return app


def _hint(error: BaseException | None) -> str:
    """The remedy where Redis answers and refuses: the ACL, nobody it knows, a full disk."""
    from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

    while error is not None:
        if isinstance(error, NoPermissionError):
            return _ACL_HINT
        if isinstance(error, AuthenticationError):
            return "; check the user and password in the URL"
        if isinstance(error, ResponseError) and str(error).startswith("MISCONF"):
            return "; free space on its disk"
        error = error.__cause__
    return ""


def _reason(error: BaseException) -> str:
    """The innermost cause on one short line, without the library's wrapping."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return redacted(text)[:200] if "://" in text else text[:200]
