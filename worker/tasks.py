"""The Celery tasks: thin shells that validate ids, call one service, and acknowledge last.

The thread pool has no kill switch and leaks its slot on MemoryError and SystemExit (celery#10462),
so every body is wrapped. On a drain `Reject` requeues the message; everything else is acknowledged,
and what went wrong is found by the reaper from leases and store. A search is never sent again: its
reply says what went wrong.
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from celery import Celery
from celery.exceptions import Reject
from redis import RedisError

from ramole_core import messages
from ramole_core.errors import InvalidInputError, NotFoundError, RamoleError, UnavailableError
from ramole_core.jobs import checked_name
from worker import requests
from worker.ledger import Claim, Ledger, ShardRef
from worker.logs import working_on
from worker.services import Services
from worker.shards import ShardAbandonedError
from worker.transport import IdsOnly

logger = logging.getLogger(__name__)

UPLOAD_LOCK_SECONDS: Final = 120.0


def add_tasks(app: Celery, services: Services) -> None:
    """Registers the four tasks on the app and drops Celery's built-in ones."""
    bodies: dict[str, Callable[..., None]] = {
        messages.RUN_SHARD: run_shard,
        messages.START_JOB: start_job,
        messages.REGISTER_ADAPTER: register_adapter,
        messages.ANSWER: answer,
    }
    app.finalize()
    for name in list(app.tasks):
        app.tasks.unregister(name)
    for name, body in bodies.items():
        app.task(_guarded(body, services), name=name, shared=False, Request=IdsOnly)


def run_shard(services: Services, job_id: str, shard: str) -> None:
    """Claims one shard and runs it."""
    ref = ShardRef(checked_name("job", job_id), checked_name("shard", shard))
    with working_on(job=job_id, shard=shard):
        claim = _claimed(services, ref)
        if isinstance(claim, str):
            logger.info("nothing to do: the shard is %s", claim)
            return
        try:
            services.shards.run(claim)
        except ShardAbandonedError as e:
            logger.info("shard let go: %s", e)
            if services.draining.is_set():
                raise Reject(str(e), requeue=True) from e


def start_job(services: Services, job_id: str) -> None:
    """Takes a job in, or lets go of a cancelled one."""
    with working_on(job=checked_name("job", job_id)):
        services.desk.start(job_id)
        services.dispatcher.fill()


def register_adapter(services: Services, upload_id: str) -> None:
    """Accepts or refuses an upload, then those whose message found no turn free."""
    checked_name("upload", upload_id)
    with services.uploads.turn() as is_free:
        if not is_free:
            return  # it is in line: whose turn it is looks for it in the store
        for each in services.uploads.line(upload_id):
            if services.draining.is_set():
                return
            _receive(services, each)


def answer(services: Services, request_id: str) -> None:
    """Answers a producer's request."""
    with working_on(request=checked_name("request", request_id)):
        requests.answer(request_id, services.store, services.encoders)


def _receive(services: Services, upload_id: str) -> None:
    lock = f"{messages.KEY_PREFIX}lock:upload:{upload_id}"
    with working_on(upload=upload_id):
        if not services.ledger.try_lock(lock, UPLOAD_LOCK_SECONDS):
            return  # another worker is at it; should it die, the reaper sends it again
        with _renewed(services.ledger, lock):
            tries = services.ledger.count_try(upload_id)
            try:
                if tries > services.settings.max_attempts:
                    services.uploads.give_up(upload_id)
                services.uploads.receive(upload_id)
            except UnavailableError:
                services.ledger.count_try(upload_id, -1)  # an outage is nobody's try
                raise


@contextmanager
def _renewed(ledger: Ledger, lock: str) -> Iterator[None]:
    """The lock does not run out in the block, after which it is free."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(UPLOAD_LOCK_SECONDS / 3):
            with suppress(RedisError):
                ledger.extend_lock(lock, UPLOAD_LOCK_SECONDS)

    thread = threading.Thread(target=renew, name="upload-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        ledger.unlock(lock)


def _claimed(services: Services, ref: ShardRef) -> Claim | str:
    """A claim, after taking the job in when Redis does not know it (any more)."""
    claim = services.ledger.claim(ref, services.settings.max_attempts)
    if claim == "unknown" and services.desk.start(ref.job_id):
        claim = services.ledger.claim(ref, services.settings.max_attempts)
    return claim


def _guarded(body: Callable[..., None], services: Services) -> Callable[..., None]:
    @functools.wraps(body)
    def task(*ids: Any) -> None:
        if services.draining.is_set():
            raise Reject("the worker is stopping", requeue=True)
        try:
            body(services, *ids)
        except Reject:
            raise
        except (InvalidInputError, NotFoundError) as e:
            logger.error("message dropped: %s", e)
        except (UnavailableError, RedisError) as e:
            logger.warning("%s failed: %s", body.__name__, e)
        except RamoleError as e:
            logger.error("%s failed: %s", body.__name__, e)
        except (MemoryError, SystemExit) as e:
            logger.exception("%s: %s", body.__name__, type(e).__name__)
            raise RuntimeError(f"{body.__name__}: {type(e).__name__}") from None
        except Exception:
            logger.exception("%s failed", body.__name__)

    return task
