"""The registry's log as data: one entry, and what a sequence of entries means.

No store and no locks here; `Registry` brings both.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import AdapterRefusedError, InvalidInputError, NotFoundError
from ramole_core.jobs import Name, Wire


class LogEntry(Wire):
    """`registry/log/<n>.json`. A "remove" without version means all that stand at that moment."""

    op: Literal["add", "remove"]
    name: Name
    version: int | None = Field(default=None, ge=1)
    at: str
    sha256: str | None = None  # these three: "add" only
    owner: str | None = None
    upload_id: str | None = None


@dataclass(frozen=True)
class AdapterVersion:
    """One version with its place in the log."""

    ref: AdapterRef
    sha256: str
    owner: str
    upload_id: str
    added: int  # number of the entry
    added_at: str
    removed: int | None = None  # number of the entry

    def stands(self, position: int) -> bool:
        """True when it was there and not removed after entry `position`."""
        return self.added <= position and (self.removed is None or self.removed > position)


class LogView:
    """The entries 1 to `position`, applied in order."""

    def __init__(self) -> None:
        self.position = 0
        self._versions: dict[str, dict[int, AdapterVersion]] = {}
        self._spellings: dict[str, str] = {}  # case-folded name -> name
        self._uploads: dict[str, AdapterRef] = {}

    def apply(self, entry: LogEntry) -> None:
        """Applies entry number `position` + 1. An entry that changes nothing is no error."""
        self.position += 1
        versions = self._versions.setdefault(entry.name, {})
        if entry.op == "add":
            self._add(entry, versions)
            return
        for number, known in versions.items():
            if entry.version in (None, number) and known.removed is None:
                versions[number] = replace(known, removed=self.position)

    def _add(self, entry: LogEntry, versions: dict[int, AdapterVersion]) -> None:
        ref = AdapterRef(entry.name, entry.version or 0)
        if ref.version in versions:
            return
        versions[ref.version] = AdapterVersion(
            ref=ref,
            sha256=entry.sha256 or "",
            owner=entry.owner or "",
            upload_id=entry.upload_id or "",
            added=self.position,
            added_at=entry.at,
        )
        self._spellings.setdefault(entry.name.casefold(), entry.name)
        self._uploads[entry.upload_id or ""] = ref

    def checked(self, position: int | None) -> int:
        """A position that was read. Raises InvalidInputError when it lies ahead."""
        if position is not None and not 0 <= position <= self.position:
            raise InvalidInputError(f"registry position {position}: read so far {self.position}")
        return self.position if position is None else position

    def active(self, position: int) -> dict[str, AdapterRef]:
        """The highest version that stands, of every name."""
        found: dict[str, AdapterRef] = {}
        for name, versions in self._versions.items():
            standing = [v.ref for v in versions.values() if v.stands(position)]
            if standing:
                found[name] = max(standing)
        return found

    def versions(self, name: str) -> list[AdapterVersion]:
        """All versions of a name in ascending order."""
        known = self._versions.get(name, {})
        return [known[number] for number in sorted(known)]

    def names(self) -> list[str]:
        """Every name that ever had a version."""
        return sorted(name for name, versions in self._versions.items() if versions)

    def of_upload(self, upload_id: str) -> AdapterVersion | None:
        """The version that an upload became."""
        ref = self._uploads.get(upload_id)
        return self._versions[ref.name][ref.version] if ref else None

    def same(self, entry: LogEntry) -> AdapterVersion | None:
        """What makes an "add" needless: the version of its upload, of its number, or the active
        one when its owner added equal content.
        """
        of_upload = self.of_upload(entry.upload_id) if entry.upload_id else None
        known = of_upload or self._versions.get(entry.name, {}).get(entry.version or 0)
        standing = [v for v in self.versions(entry.name) if v.stands(self.position)]
        if known or not standing:
            return known
        newest = standing[-1]
        equal = (newest.sha256, newest.owner) == (entry.sha256, entry.owner)
        return newest if equal else None

    def meant(self, name: str, version: int | None) -> list[AdapterVersion]:
        """The versions a removal speaks of. Raises NotFoundError when there never was one."""
        found = [v for v in self.versions(name) if version in (None, v.ref.version)]
        if not found:
            raise NotFoundError(f"adapter {_shown(name, version)} does not exist")
        return found

    def resolve(self, name: str, version: int | None, position: int | None) -> AdapterRef:
        """See Registry.resolve."""
        at = self.checked(position)
        known = [v for v in self.versions(name) if v.added <= at]
        found = [v for v in known if v.stands(at) and version in (None, v.ref.version)]
        if not found:
            gone = any(version in (None, v.ref.version) for v in known)
            state = "was removed" if gone else "does not exist"
            raise NotFoundError(f"adapter {_shown(name, version)} {state}")
        return found[-1].ref

    def check_name(self, name: str, owner: str) -> None:
        """Raises AdapterRefusedError when `owner` may not add a version to `name`."""
        spelling = self._spellings.get(name.casefold(), name)
        if spelling != name:
            raise AdapterRefusedError(
                "name_collision", f"{name!r} differs only by case from {spelling!r}: choose another"
            )
        self.check_owner(name, owner)

    def check_owner(self, name: str, owner: str) -> None:
        """Raises AdapterRefusedError when the name belongs to someone else (removed or not)."""
        versions = self.versions(name)
        if versions and versions[0].owner != owner:
            raise AdapterRefusedError(
                "not_owner", f"{name!r} belongs to another owner: choose another name"
            )


def _shown(name: str, version: int | None) -> str:
    return repr(name[:120]) if version is None else repr(f"{name[:120]}@{version}")
