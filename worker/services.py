"""Everything a worker process owns, built once and passed on."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ramole_core import messages
from ramole_core.activations import Activations
from ramole_core.adapters.cache import AdapterCache
from ramole_core.adapters.gate import Limits
from ramole_core.adapters.registry import Registry
from ramole_core.engine.engine import Engine
from ramole_core.engine.factory import build_engine
from ramole_core.errors import BrokerUnavailableError, ConfigError
from ramole_core.settings import Settings, redacted
from ramole_core.store import ObjectStore, open_store
from worker.announce import announce_base
from worker.deaths import Coroner
from worker.dispatcher import Dispatcher
from worker.encoder_source import EncoderSource, load_encoder_in_use
from worker.encoders import Encoders
from worker.housekeeping import Housekeeper, guarded
from worker.journal import Journal
from worker.leases import LeaseKeeper
from worker.ledger import Ledger, ShardRef
from worker.lifecycle import JobDesk
from worker.quiet import Quiet
from worker.routers import StoredRouters
from worker.shards import ShardRunner
from worker.uploads import UploadDesk

logger = logging.getLogger(__name__)

STALL_SECONDS: Final = 120.0  # without an engine step or an encoder batch
EX_SOFTWARE: Final = 70
JOURNALS: Final = "journals"


@dataclass(frozen=True)
class Services:
    """The parts of one worker process, wired."""

    settings: Settings
    store: ObjectStore
    ledger: Ledger
    engine: Engine
    encoders: Encoders
    leases: LeaseKeeper
    desk: JobDesk
    dispatcher: Dispatcher
    uploads: UploadDesk
    shards: ShardRunner
    housekeeper: Housekeeper
    draining: threading.Event
    journal: Journal

    def start(self) -> None:
        """Starts all threads; the process then counts as a live worker."""
        self.engine.start()
        self.leases.start()
        self.housekeeper.start()

    def stop(self) -> None:
        """Stops all threads. Shards in hand must have been let go before (`draining`)."""
        self.draining.set()
        self.housekeeper.stop()
        self.leases.stop()
        self.engine.stop()
        self.encoders.stop()
        self.journal.close()


def worker_name() -> str:
    """Unique per process start, so that a restarted worker never passes for its predecessor."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def connect(settings: Settings) -> Redis:
    """A checked connection pool. Raises BrokerUnavailableError."""
    try:
        redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=10,
            socket_connect_timeout=3,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=4),
            **messages.redis_options(settings),
        )
        redis.ping()
    except ValueError:
        raise ConfigError(  # its text may hold the password
            "RAMOLE_BROKER_URL: use redis://, rediss:// or unix:// with host, port and database"
        ) from None
    except RedisError as e:
        shown = redacted(settings.redis_url)
        raise BrokerUnavailableError(f"Redis at {shown} (RAMOLE_BROKER_URL): {e}") from e
    return redis


def open_services(settings: Settings, send: Callable[..., Any]) -> Services:
    """Loads the model and the encoder and wires the parts; `send` is Celery's send_task.

    Raises ConfigError, StoreUnavailableError, BrokerUnavailableError.
    """
    store = _opened_store(settings)
    redis = connect(settings)
    name, journals = worker_name(), settings.home / JOURNALS
    ledger = Ledger(redis, name, settings.lease_seconds)
    journal = Journal(journals, name)
    coroner = Coroner(journals, store, ledger.pardon)
    guarded(coroner.look)  # while the model is loaded, others would take what killed this one
    cache, quiet = AdapterCache(store, settings.home / "cache" / "adapters"), Quiet()
    engine = build_engine(
        settings, cache, StoredRouters(store), on_running=journal.running, quiet=quiet
    )
    base = engine.base.base_info()
    announce_base(store, base)
    registry = Registry(store)
    registry.refresh()
    draining = threading.Event()
    encoders = _open_encoders(store, registry, settings, draining, quiet, journal)
    about = messages.AboutWorker(memory=str(engine.plan), warnings=engine.plan.warnings)
    ledger.about = about.model_dump_json()
    leases = LeaseKeeper(
        ledger, settings.lease_seconds, lambda: _make_progress(engine, encoders), _end_process
    )
    desk = JobDesk(store, ledger)
    dispatcher = Dispatcher(ledger, send, settings.shards_in_flight)

    def on_shard_done(ref: ShardRef, job_done: bool) -> None:
        if job_done:
            desk.finalise(ref.job_id)
        dispatcher.fill()

    uploads = UploadDesk(
        store, registry, base, Limits.from_settings(settings), encoders, settings.home / "tmp"
    )
    shards = ShardRunner(
        store,
        ledger,
        leases,
        registry,
        encoders,
        engine,
        draining,
        on_shard_done,
        journal,
        quiet,
        settings,
    )
    housekeeper = Housekeeper(
        ledger, dispatcher, desk, uploads, registry, encoders, coroner, send, settings
    )
    return Services(
        settings, store, ledger, engine, encoders, leases, desk, dispatcher, uploads, shards,
        housekeeper, draining, journal,
    )  # fmt: skip


def _opened_store(settings: Settings) -> ObjectStore:
    store = open_store(settings)
    store.check()
    make_bucket = getattr(store, "make_bucket", None)
    if make_bucket is not None:
        make_bucket()
    return store


def _open_encoders(
    store: ObjectStore,
    registry: Registry,
    settings: Settings,
    draining: threading.Event,
    quiet: Quiet,
    journal: Journal,
) -> Encoders:
    source, activations = EncoderSource(store, settings), Activations(store)
    first = load_encoder_in_use(activations, source)
    return Encoders(
        store, registry, activations, source.load, first, draining, quiet, journal.embedding
    )


def _make_progress(engine: Engine, encoders: Encoders) -> bool:
    oldest = time.monotonic() - STALL_SECONDS
    return not engine.ended and engine.progress_at > oldest and encoders.have_moved_since(oldest)


def _end_process() -> None:
    """A thread that hangs in a device call cannot be ended otherwise."""
    os._exit(EX_SOFTWARE)
