"""Is everything there that a job needs? One finding per part, in the order of dependence."""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from producer.broker import Broker
from producer.data_folder import check_data_folder
from producer.pins import read_active, read_base
from producer.versions import read_router_card
from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.errors import (
    NotFoundError,
    RamoleError,
    StoreUnavailableError,
    UnavailableError,
)
from ramole_core.jobs import Wire
from ramole_core.mole.card import WEIGHTS_FILE
from ramole_core.retrieval.card import read_encoder_card
from ramole_core.settings import Settings, redacted
from ramole_core.store import ObjectStore, open_store

MIN_REDIS: Final = (6, 2)
MAX_SKEW_SECONDS: Final = 60.0


class Check(Wire):
    """One finding."""

    name: str
    ok: bool
    detail: str


def examine(settings: Settings) -> list[Check]:
    """All findings; ends within 10 s whatever is out of reach."""
    broker = Broker(settings)
    checks = [Check(name="settings", ok=True, detail=f"data folder {settings.home}")]
    checks.append(_check("broker", lambda: _broker(broker, settings)))
    if checks[-1].ok:
        checks.append(_check("rights", lambda: _rights(broker)))
        checks.append(_check("eviction", lambda: _eviction(broker)))
        checks.append(_check("persistence", lambda: _persistence(broker)))
        checks.append(_check("workers", lambda: _workers(broker)))
        checks.append(_check("bank memory", lambda: _bank_memory(broker)))
    checks.append(_check("store", lambda: _store(settings)))
    if checks[-1].ok:
        store = open_store(settings)
        checks.append(_check("base model", lambda: _base(store)))
        checks.append(_check("encoder", lambda: _encoder(store)))
        checks.append(_check("router", lambda: _router(store)))
    return checks


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=look())
    except RamoleError as e:
        return Check(name=name, ok=False, detail=str(e))


def _broker(broker: Broker, settings: Settings) -> str:
    broker.check()
    info = broker.info()
    kind = "valkey" if "valkey_version" in info else "redis"
    version = str(info.get(f"{kind}_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_REDIS:
        raise UnavailableError(f"{kind} {version} is too old; 6.2 or newer is needed")
    return f"{kind} {version} at {redacted(settings.redis_url)}"


def _rights(broker: Broker) -> str:
    broker.check_rights()
    return "messages may be sent, progress and heartbeats read"


def _eviction(broker: Broker) -> str:
    info = broker.info()
    policy, most = info.get("maxmemory_policy", "unknown"), int(info.get("maxmemory", 0))
    if 0 < most <= int(info.get("used_memory", 0)):
        raise UnavailableError(
            f"Redis is full and takes no message: maxmemory is {most} bytes, give it more"
        )
    if policy != "noeviction":
        raise UnavailableError(
            f"maxmemory-policy is {policy}, which loses messages: set it to noeviction"
        )
    return f"maxmemory-policy {policy}"


def _persistence(broker: Broker) -> str:
    """No file is no fault: the store is the truth. One that cannot be written stops all work."""
    info = broker.info()
    if not info.get("aof_enabled"):
        return (
            "appendonly no: a restart loses the queue; workers fill it from the store in a minute"
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        raise UnavailableError(
            "Redis cannot write its append-only file and takes no message: is its disk full?"
        )
    return "appendonly yes"


def _workers(broker: Broker) -> str:
    names = broker.live_workers()
    if not names:
        raise UnavailableError("no worker is running; start one with `ramole up`")
    return ", ".join(names)


def _bank_memory(broker: Broker) -> str:
    """What the workers' own plans say: adapters in memory, and everything beside them."""
    known = {name: broker.about(name) for name in broker.live_workers()}
    told = {name: about for name, about in known.items() if about is not None}
    doubts = [f"{name}: {doubt}" for name, about in told.items() for doubt in about.warnings]
    if doubts:
        raise UnavailableError("; ".join(doubts))
    return "; ".join(f"{name}: {about.memory}" for name, about in told.items()) or "not known"


def _store(settings: Settings) -> str:
    check_data_folder(settings)
    store = open_store(settings)
    store.check()
    key = keys.PROBES + secrets.token_hex(8)
    try:
        _probe(store, key)
        _check_clock(store, key)
    finally:
        with suppress(RamoleError):  # a producer's key need not be allowed to delete
            store.delete(key)
    return (
        f"{redacted(settings.store_location)}: write, read, conditional create and clock are right"
    )


def _probe(store: ObjectStore, key: str) -> None:
    if not store.create(key, b"first") or store.get(key) != b"first":
        raise StoreUnavailableError("store: a new object was not there when it was read")
    if store.create(key, b"second"):
        raise StoreUnavailableError(
            "store: conditional creation replaced an object; "
            "this server ignores If-None-Match and cannot be used"
        )
    store.put(key, b"third")
    if store.get(key) != b"third":
        raise StoreUnavailableError("store: a replaced object still has its old content")


def _check_clock(store: ObjectStore, key: str) -> None:
    """The time of an object that was written a moment ago, beside this machine's."""
    written = next((info.modified_seconds for info in store.entries(key)), None)
    if written is None:
        raise StoreUnavailableError("store: a new object is not in the listing of its folder")
    skew = written - time.time()
    if abs(skew) > MAX_SKEW_SECONDS:
        raise StoreUnavailableError(
            f"store: its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this "
            "machine's, by which deadlines, credentials and ages of jobs go wrong: set both by NTP"
        )


def _base(store: ObjectStore) -> str:
    base = read_base(store)
    return f"{base.name}, {len(base.targets)} linears, context of {base.context_tokens} tokens"


def _encoder(store: ObjectStore) -> str:
    version = read_active(store).encoder
    try:
        card = read_encoder_card(store, version)
    except NotFoundError:
        if version == Activations(store).first_encoder():
            return f"{version}, given by the workers' RAMOLE_ENCODER"
        raise
    _require(store, [keys.encoder_files(version) + name for name in card.files])
    return f"{version}, trained from {card.trained_from}"


def _router(store: ObjectStore) -> str:
    version = read_active(store).router
    if version is None:
        return "none in use"
    read_router_card(store, version).check_base(read_base(store).fingerprint)
    _require(store, [keys.router(version) + WEIGHTS_FILE])
    return version


def _require(store: ObjectStore, wanted: list[str]) -> None:
    missing = [key for key in wanted if not store.exists(key)]
    if missing:
        raise NotFoundError(f"{missing[0]} is not in the store")
