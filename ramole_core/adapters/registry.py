"""The registry: which version of which adapter is active, at every moment since the beginning.

Truth is an append-only log of numbered objects; entry n is created conditionally, so of all writers
exactly one gets n and the others look at what it wrote before they try n + 1. Rules that two
uploads could break together (one owner per name, no two names that differ by case only) are
checked against the log up to n - 1 at that moment. A `Registry` is one process's view of the log:
`refresh` reads what is new, everything else answers from memory. Safe to share between threads.
"""

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.adapters.log import AdapterVersion, LogEntry, LogView
from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.jobs import utc_now
from ramole_core.store.base import ObjectStore

_MAX_SNAPSHOTS: Final = 8

T = TypeVar("T")


class Registry:
    """Accepted and removed adapter versions in the order of the log."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._refreshing = threading.Lock()  # held over store calls, so never by readers
        self._lock = threading.Lock()  # guards the two below
        self._view = LogView()
        self._snapshots: dict[int, dict[str, AdapterRef]] = {}

    @property
    def position(self) -> int:
        """Number of the last entry read."""
        with self._lock:
            return self._view.position

    def refresh(self) -> int:
        """Reads the entries that are new, one by one; returns the position."""
        with self._refreshing:
            while (entry := self._read(self.position + 1)) is not None:
                with self._lock:
                    self._view.apply(entry)
            return self.position

    def active(self, position: int | None = None) -> dict[str, AdapterRef]:
        """The newest version, not removed, of every name at a log position (default: as read).

        A position ahead of what was read is read first; one ahead of the log: InvalidInputError.
        """
        self._reach(position)
        with self._lock:
            at = self._view.checked(position)
            if at not in self._snapshots:
                if len(self._snapshots) >= _MAX_SNAPSHOTS:
                    self._snapshots.pop(next(iter(self._snapshots)))
                self._snapshots[at] = self._view.active(at)
            return dict(self._snapshots[at])

    def versions(self, name: str) -> list[AdapterVersion]:
        """All versions of a name, removed ones too, oldest first; empty when there is none."""
        with self._lock:
            return self._view.versions(name)

    def names(self) -> list[str]:
        """Every name that ever had a version."""
        with self._lock:
            return self._view.names()

    def resolve(
        self, name: str, version: int | None = None, position: int | None = None
    ) -> AdapterRef:
        """The version a caller means at a log position. Raises NotFoundError."""
        self._reach(position)
        with self._lock:
            return self._view.resolve(name, version, position)

    def of_upload(self, upload_id: str) -> AdapterVersion | None:
        """The version that an upload became, if it was accepted."""
        with self._lock:
            return self._view.of_upload(upload_id)

    def add(self, entry: LogEntry) -> AdapterVersion:
        """Appends an "add" entry unless the log makes it needless, see LogView.same.

        Returns the version that stands for it: its own, or the active one of equal content.
        Raises AdapterRefusedError with reason not_owner or name_collision.
        """
        version = self._append(entry, lambda view: view.same(entry))
        assert version is not None, "the entry was written and read"
        return version

    def check_name(self, name: str, owner: str) -> None:
        """Raises AdapterRefusedError when `owner` may not add a version to `name` now."""
        with self._lock:
            self._view.check_name(name, owner)

    def remove(
        self, name: str, version: int | None = None, owner: str | None = None
    ) -> list[AdapterRef]:
        """Removes one version (the next older one is active again) or, without one, all.

        Files stay readable for jobs that pin them. Removing twice is no error, and a version that
        is added after the removal's own entry stays. Returns the versions
        that are now removed. Raises NotFoundError, and AdapterRefusedError (not_owner) when
        `owner` is given and the name belongs to someone else.
        """
        self.refresh()
        with self._lock:
            self._view.meant(name, version)  # raises when there never was one
            if owner is not None:
                self._view.check_owner(name, owner)
        entry = LogEntry(op="remove", name=name, version=version, at=utc_now().isoformat())
        self._append(entry, lambda view: all(v.removed for v in view.meant(name, version)))
        with self._lock:
            refs = [v.ref for v in self._view.meant(name, version) if v.removed]
        for ref in refs:
            self._store.put(keys.tombstone(ref), b"{}")
        return refs

    def _reach(self, position: int | None) -> None:
        if position is not None and position > self.position:
            self.refresh()

    def _append(self, entry: LogEntry, applied: Callable[[LogView], T]) -> T:
        """Writes `entry` once under the next free number, unless it is applied by then."""
        data = entry.model_dump_json().encode()
        written = False
        while True:
            self.refresh()
            with self._lock:
                if (found := applied(self._view)) or written:
                    return found
                if entry.op == "add":
                    self._view.check_name(entry.name, entry.owner or "")
                number = self._view.position + 1
            written = self._store.create(keys.registry_entry(number), data)

    def _read(self, number: int) -> LogEntry | None:
        key = keys.registry_entry(number)
        try:
            return LogEntry.model_validate_json(self._store.get(key))
        except NotFoundError:
            return None
        except ValidationError as e:
            raise InvalidInputError(f"{key}: not a registry entry, was it edited?") from e
