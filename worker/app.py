"""The Celery application of a worker: the measured settings of a thread pool on Redis."""

from celery import Celery
from kombu.entity import Queue

from ramole_core import messages
from ramole_core.settings import Settings


def make_app(settings: Settings) -> Celery:
    """A configured app without tasks; connects when it is started."""
    app = Celery("ramole", set_as_current=False, loader="celery.loaders.default:Loader")
    app.conf.update(
        messages.celery_settings(settings),
        broker_transport="worker.transport:Transport",
        broker_connection_retry=True,
        broker_channel_error_retry=True,
        broker_pool_limit=10,
        task_queues=[Queue(messages.SHARD_QUEUE), Queue(messages.CONTROL_QUEUE)],
        task_default_queue=messages.CONTROL_QUEUE,
        task_track_started=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        worker_pool="threads",
        worker_concurrency=settings.concurrency,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        worker_soft_shutdown_timeout=0,
        worker_send_task_events=False,
        worker_enable_remote_control=False,  # whoever writes to Redis could stop workers
    )
    return app
