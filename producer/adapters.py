"""Adapters from the producer's side: check and upload, list, show, remove.

Listing, showing and removing need the store alone; an upload waits for a worker's verdict.
"""

import getpass
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from producer.broker import Broker
from producer.pins import read_base, read_registry
from producer.polling import Clock
from producer.replies import REPLY_SECONDS, await_reply, require_worker
from ramole_core import messages
from ramole_core.adapters.card import Card, read_card
from ramole_core.adapters.gate import Limits, check_folder
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.samples import check_samples, read_samples
from ramole_core.adapters.staging import checked_adapter_name, new_upload_id, stage_upload
from ramole_core.errors import AdapterRefusedError, NotFoundError
from ramole_core.jobs import Wire, utc_now
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore

UPLOAD_SECONDS: Final = 4 * REPLY_SECONDS


class Upload(Wire):
    """What became of an upload; `status` is staged when nobody waited for the verdict."""

    upload_id: str
    status: str
    name: str
    version: int | None
    warnings: tuple[str, ...] = ()


class AdapterRow(Wire):
    """One version of an adapter, as the registry's log has it."""

    name: str
    version: int
    active: bool
    removed: bool
    owner: str
    added_at: str


class AdapterDetails(Wire):
    """One adapter: all its versions, and the card of the one asked for."""

    name: str
    versions: tuple[AdapterRow, ...]
    card: Card


class Adapters:
    """The adapters of one store."""

    def __init__(
        self, settings: Settings, store: ObjectStore, broker: Broker, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._store = store
        self._broker = broker
        self._clock = clock

    def upload(
        self,
        folder: Path,
        name: str,
        samples: Path | Sequence[str],
        wait: bool = True,
        timeout_seconds: float = UPLOAD_SECONDS,
    ) -> Upload:
        """Checks the folder here, stages it and waits for a worker's verdict.

        Raises NotFoundError, AdapterRefusedError, UnavailableError, TimedOutError.
        """
        for path in (folder, samples):
            if isinstance(path, Path) and not os.path.exists(path):
                raise NotFoundError(f"{path}: no such file or folder")
        base = read_base(self._store)
        checked_adapter_name(name)
        texts = read_samples(samples) if isinstance(samples, Path) else check_samples(samples)
        checked = check_folder(folder, base, Limits.from_settings(self._settings))
        read_registry(self._store).check_name(name, self._owner())
        if wait:
            require_worker(self._broker)
        else:
            self._broker.check()
        upload_id = new_upload_id(utc_now())
        stage_upload(self._store, folder, texts, name, self._owner(), upload_id)
        self._broker.send(messages.REGISTER_ADAPTER, upload_id)
        if not wait:
            return Upload(
                upload_id=upload_id,
                status="staged",
                name=name,
                version=None,
                warnings=checked.warnings,
            )
        return self.verdict(upload_id, name, timeout_seconds)

    def verdict(self, upload_id: str, name: str, timeout_seconds: float = UPLOAD_SECONDS) -> Upload:
        """Waits for the verdict on a staged upload. Raises AdapterRefusedError, TimedOutError."""
        reply = await_reply(
            self._store, upload_id, f"upload {upload_id}", timeout_seconds, self._clock
        )
        if reply["status"] == "refused":
            error = reply["error"]
            raise AdapterRefusedError(error["reason"], f"adapter {name!r}: {error['message']}")
        return Upload(
            upload_id=upload_id,
            status=reply["status"],
            name=name,
            version=reply["version"],
            warnings=tuple(reply.get("warnings", ())),
        )

    def rows(self, with_removed: bool = False) -> list[AdapterRow]:
        """The active version of every adapter, by name; with all old and removed ones if asked."""
        registry = read_registry(self._store)
        active = registry.active()
        rows = [row for name in registry.names() for row in _rows(registry, active, name)]
        return [row for row in rows if with_removed or row.active]

    def details(self, name: str, version: int | None = None) -> AdapterDetails:
        """All versions of an adapter and the card of one. Raises NotFoundError."""
        registry = read_registry(self._store)
        ref = registry.resolve(name, version)
        rows = tuple(_rows(registry, registry.active(), name))
        return AdapterDetails(name=name, versions=rows, card=read_card(self._store, ref))

    def remove(
        self, name: str, version: int | None = None, any_owner: bool = False
    ) -> list[AdapterRef]:
        """Removes one version, or all of a name; returns those that still stood.

        `any_owner`: whoever uploaded it (an operator's key is not the owner's).
        Raises NotFoundError, AdapterRefusedError.
        """
        registry = read_registry(self._store)
        before = {v.ref for v in registry.versions(name) if v.removed is not None}
        removed = registry.remove(name, version, None if any_owner else self._owner())
        return [ref for ref in removed if ref not in before]

    def _owner(self) -> str:
        """Who uploads: the store credential of a shared store, else the user of this machine."""
        return self._settings.store_access_key or _user()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id that no name belongs to
        return f"uid-{os.getuid()}"


def _rows(registry: Registry, active: dict[str, AdapterRef], name: str) -> list[AdapterRow]:
    return [
        AdapterRow(
            name=name,
            version=version.ref.version,
            active=active.get(name) == version.ref,
            removed=version.removed is not None,
            owner=version.owner,
            added_at=version.added_at,
        )
        for version in registry.versions(name)
    ]
