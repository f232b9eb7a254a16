"""Which encoder and which router version are in use, at every moment since the first worker.

Truth is an append-only log of numbered objects, like the registry's: entry n is created
conditionally, so of all writers exactly one gets n and the others look at what it wrote before they
try n + 1. A rollback is an entry too: it takes the newest "use" of its kind back, so that several
rollbacks go back step by step. A job pins what is in use when it is submitted; an entry changes
later jobs only.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.jobs import Name, Wire, utc_now
from ramole_core.store.base import ObjectStore

Kind = Literal["encoder", "router"]
Stacks = dict[Kind, list[str | None]]


class Activation(Wire):
    """`activations/<n>.json`. `version` null: no router; a "rollback" has none of its own."""

    op: Literal["use", "rollback"]
    kind: Kind
    version: Name | None = None
    at: str


@dataclass(frozen=True)
class Active:
    """The versions in use. `encoder` is empty before the first worker has started."""

    encoder: str = ""
    router: str | None = None


class Activations:
    """The log in one store. Every call reads what is new; safe to share between threads.

    Every method raises InvalidInputError when an entry is damaged.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._entries: list[Activation] = []

    def entries(self) -> list[Activation]:
        """The whole log, oldest first."""
        with self._lock:
            while (entry := self._read(len(self._entries) + 1)) is not None:
                self._entries.append(entry)
            return list(self._entries)

    def active(self) -> Active:
        """The versions in use now."""
        return _active(_stacks(self.entries()))

    def first_encoder(self) -> str:
        """The version that the first worker brought (its RAMOLE_ENCODER); empty before."""
        used = (e.version for e in self.entries() if e.kind == "encoder" and e.op == "use")
        return next(used, None) or ""

    def start(self, encoder: str) -> Active:
        """Makes `encoder` the first version in use, unless there is one; returns what is in use."""
        entry = Activation(op="use", kind="encoder", version=encoder, at=_now())
        return self._append(lambda stacks: None if stacks["encoder"] else entry)

    def use(self, kind: Kind, version: str | None) -> Active:
        """Puts a version in use; nothing is written when it is already.

        Whether there is such a version, and whether it fits, is for the caller to check.
        """
        entry = Activation(op="use", kind=kind, version=version, at=_now())
        return self._append(lambda stacks: None if _top(stacks[kind]) == version else entry)

    def rollback(self, kind: Kind) -> Active:
        """Takes the newest `use` of `kind` back.

        Raises InvalidInputError when there is nothing to go back to.
        """
        entry = Activation(op="rollback", kind=kind, at=_now())

        def wanted(stacks: Stacks) -> Activation:
            if len(stacks[kind]) < (2 if kind == "encoder" else 1):
                raise InvalidInputError(f"there is no earlier {kind} to go back to")
            return entry

        return self._append(wanted)

    def _append(self, wanted: Callable[[Stacks], Activation | None]) -> Active:
        """Writes the entry that is wanted after the last one, if any; returns what is in use."""
        while True:
            entries = self.entries()
            entry = wanted(_stacks(entries))
            if entry is None:
                return _active(_stacks(entries))
            key, data = keys.activation(len(entries) + 1), entry.model_dump_json().encode()
            if self._store.create(key, data):
                return self.active()

    def _read(self, number: int) -> Activation | None:
        key = keys.activation(number)
        try:
            return Activation.model_validate_json(self._store.get(key))
        except NotFoundError:
            return None
        except ValidationError as e:
            raise InvalidInputError(f"{key}: not an activation entry, was it edited?") from e


def _stacks(entries: list[Activation]) -> Stacks:
    """For each kind the versions in use, the current one last."""
    stacks: Stacks = {"encoder": [], "router": []}
    for entry in entries:
        stack = stacks[entry.kind]
        if entry.op == "use":
            stack.append(entry.version)
        elif stack:
            stack.pop()
    return stacks


def _top(stack: list[str | None]) -> str | None:
    return stack[-1] if stack else None


def _active(stacks: Stacks) -> Active:
    return Active(_top(stacks["encoder"]) or "", _top(stacks["router"]))


def _now() -> str:
    return utc_now().isoformat()
