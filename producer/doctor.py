"""Is everything there that a job needs? One finding per part, in the order of dependence."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from producer.broker import Broker
from producer.data_folder import check_data_folder
from producer.pins import read_base
from ramole_core.errors import RamoleError, StoreUnavailableError, UnavailableError
from ramole_core.jobs import Wire
from ramole_core.settings import Settings, redacted
from ramole_core.store import ObjectStore, open_store

MIN_REDIS: Final = (6, 2)
PROBES: Final = "probes/"


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
        checks.append(_check("memory", lambda: _policy(broker)))
        checks.append(_check("workers", lambda: _workers(broker)))
    checks.append(_check("store", lambda: _store(settings)))
    if checks[-1].ok:
        checks.append(_check("base model", lambda: _base(settings)))
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


def _policy(broker: Broker) -> str:
    policy = broker.info().get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        raise UnavailableError(
            f"maxmemory-policy is {policy}, which loses messages: set it to noeviction"
        )
    return f"maxmemory-policy {policy}"


def _workers(broker: Broker) -> str:
    names = broker.live_workers()
    if not names:
        raise UnavailableError("no worker is running; start one with `ramole up`")
    return ", ".join(names)


def _store(settings: Settings) -> str:
    check_data_folder(settings)
    store = open_store(settings)
    store.check()
    key = PROBES + secrets.token_hex(8)
    try:
        _probe(store, key)
    finally:
        with suppress(RamoleError):
            store.delete(key)
    return f"{redacted(settings.store_location)}: write, read, conditional create and delete work"


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


def _base(settings: Settings) -> str:
    base = read_base(open_store(settings))
    return f"{base.name}, {len(base.targets)} linears, context of {base.context_tokens} tokens"
