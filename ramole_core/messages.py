"""What producers and workers agree on about Redis: task names, queues, options, progress keys, what
a worker says of itself.

Data only: nothing here imports Celery or Redis. A message carries ids only, never paths or text.
"""

from typing import Any, Final

from ramole_core.jobs import Priority, Wire
from ramole_core.settings import Settings

KEY_PREFIX: Final = "ramole:"
RUN_SHARD: Final = "ramole.run_shard"  # (job_id, shard)
START_JOB: Final = "ramole.start_job"  # (job_id,)
REGISTER_ADAPTER: Final = "ramole.register_adapter"  # (upload_id,)
ANSWER: Final = "ramole.answer"  # (request_id,)

SHARD_QUEUE: Final = "shards"
CONTROL_QUEUE: Final = "control"
PRIORITY: Final[dict[Priority, int]] = {"high": 0, "normal": 5, "low": 9}  # 0 is taken first
PRIORITY_STEPS: Final = [0, 5, 9]
VISIBILITY_SECONDS: Final = 1800

ALIVE_SECONDS: Final = 15.0  # a worker whose heartbeat is older counts as gone
WORKERS: Final = f"{KEY_PREFIX}workers"  # zset: worker -> last heartbeat, Unix time of Redis' clock


def progress(job_id: str) -> str:
    """Hash shard -> "done OK FAILED" or "run OK FAILED". A cache: what is missing is counted."""
    return f"{KEY_PREFIX}job:{job_id}:progress"


def worker(name: str) -> str:
    """What a living worker says of itself: an AboutWorker as JSON, renewed with its heartbeat."""
    return f"{KEY_PREFIX}worker:{name}"


class AboutWorker(Wire):
    """How a worker divides its memory."""

    memory: str  # one line for people
    warnings: tuple[str, ...]  # settings that do not fit it, with the remedy


def redis_options(settings: Settings) -> dict[str, Any]:
    """What both sides give to `redis.Redis.from_url` beside the URL and their time limits."""
    tls: dict[str, Any] = {}
    if settings.redis_url.startswith("rediss://"):
        tls = {"ssl_cert_reqs": "required", "ssl_ca_certs": settings.broker_ca_file or None}
    return {"decode_responses": True, **tls}


def celery_settings(settings: Settings) -> dict[str, Any]:
    """The Celery configuration that both sides share."""
    tls = settings.redis_url.startswith("rediss://")
    options: dict[str, Any] = {
        "broker_url": settings.celery_url,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_SECONDS,
            "unacked_restore_interval": 15,
            "unacked_restore_throttle": 1,
            "global_keyprefix": f"{KEY_PREFIX}celery:",
            "socket_timeout": 30,
            "socket_connect_timeout": 3,
            "socket_keepalive": not settings.redis_url.startswith("unix://"),
            "health_check_interval": 15,
            "priority_steps": PRIORITY_STEPS,
            "queue_order_strategy": "priority",
            "max_connections": 64,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "task_create_missing_queues": False,
        "task_publish_retry_policy": {
            "max_retries": 2,
            "interval_start": 0,
            "interval_step": 0.5,
            "interval_max": 1.0,
        },
        "timezone": "UTC",
        "enable_utc": True,
    }
    if tls:
        options["broker_use_ssl"] = {
            "ssl_cert_reqs": "required",
            "ssl_ca_certs": settings.broker_ca_file or None,
        }
    return options
