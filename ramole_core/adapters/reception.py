"""A worker takes in an upload: every check, a version number, the files, the log entry, the answer.

Every step may be cut, and the same upload may be received twice or by two workers at once: it ends
as one answer and at most one version (whose number, or being `unchanged`, may depend on what other
uploads did in between). A version becomes visible with its log entry and not before; a folder
without one (a cut, a lost race) is nothing to anybody and stays. The answer is created once, before
the staging folder goes, so a late duplicate finds it. What a store lists there under a key that it
does not take stays, too, and is logged.
"""

import itertools
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.card import Card, card_key, read_card
from ramole_core.adapters.gate import Limits
from ramole_core.adapters.intake import STAGED, Arrived, take_in
from ramole_core.adapters.log import AdapterVersion, LogEntry
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.staging import UPLOAD_FILE, Upload
from ramole_core.adapters.verdict import Verdict, VerdictError, read_verdict, write_verdict
from ramole_core.errors import AdapterRefusedError, InvalidInputError, NotFoundError
from ramole_core.jobs import checked_name, utc_now
from ramole_core.store.base import ObjectStore, local_file, to_json

logger = logging.getLogger(__name__)

__all__ = ["Describe", "Verdict", "VerdictError", "read_verdict", "receive"]

# Embeds the samples of a version and stores the vector; may return warnings for its card. It may
# be called again for the same version after a cut.
Describe = Callable[[AdapterRef, list[str]], Sequence[str] | None]

CLAIM_FILE: Final = "claim.json"


def receive(
    upload_id: str,
    store: ObjectStore,
    registry: Registry,
    base: BaseInfo,
    limits: Limits,
    describe: Describe,
    workdir: Path,
) -> Verdict:
    """Accepts or refuses one upload, answers in the store and clears its staging folder.

    Raises only what a later try may heal (UnavailableError: the store is away, this disk is full;
    what `describe` raises), and InvalidInputError for an id that is none.
    """
    checked_name("upload", upload_id)
    verdict = read_verdict(store, upload_id)
    if verdict is None:
        registry.refresh()
        reception = _Reception(upload_id, store, registry, base, limits, describe)
        verdict = write_verdict(store, upload_id, reception.verdict(workdir))
    _clear(store, upload_id)
    return verdict


def _clear(store: ObjectStore, upload_id: str) -> None:
    prefix = keys.staging(upload_id)
    stuck = _undeletable(store, [prefix + UPLOAD_FILE])  # first: from here on there is no upload
    stuck += _undeletable(store, [entry.key for entry in store.entries(prefix)])
    if stuck:
        logger.warning(
            "upload %s: %d staged files stay, e.g. %.120a", upload_id, len(stuck), stuck[0]
        )


def _undeletable(store: ObjectStore, found: list[str]) -> list[str]:
    """Deletes what it can; returns the keys that are none to the store. An outage still raises."""
    stuck = []
    for key in found:
        try:
            store.delete(key)
        except (InvalidInputError, NotFoundError, UnicodeError):
            stuck.append(key)
    return stuck


def _unchanged_at(ref: AdapterRef) -> Verdict:
    return Verdict(status="unchanged", name=ref.name, version=ref.version)


class _Reception:
    """One upload on its way through the steps."""

    def __init__(
        self,
        upload_id: str,
        store: ObjectStore,
        registry: Registry,
        base: BaseInfo,
        limits: Limits,
        describe: Describe,
    ) -> None:
        self._upload_id = upload_id
        self._store = store
        self._registry = registry
        self._base = base
        self._limits = limits
        self._describe = describe
        self._name: str | None = None

    def verdict(self, workdir: Path) -> Verdict:
        """Takes all steps; a refusal becomes the answer."""
        try:
            with local_file(workdir):  # a full disk is no fault of the upload
                workdir.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix="upload-", dir=workdir) as folder:
                    return self._earlier() or self._fresh(Path(folder))
        except AdapterRefusedError as e:
            error = VerdictError(code=e.code, reason=e.reason, message=str(e))
            return Verdict(status="refused", name=self._name, version=None, error=error)

    def _fresh(self, folder: Path) -> Verdict:
        arrived = take_in(
            self._store, self._upload_id, folder, self._base, self._limits, self._check_name
        )
        self._registry.refresh()
        if earlier := self._earlier():
            return earlier
        self._check_name(arrived.upload)  # again: another owner may have been faster
        return self._unchanged(arrived) or self._published(arrived)

    def _check_name(self, upload: Upload) -> None:
        self._name = upload.name
        self._registry.check_name(upload.name, upload.owner)

    def _earlier(self) -> Verdict | None:
        """The answer when this very upload was accepted: before a cut, or by another worker."""
        version = self._registry.of_upload(self._upload_id)
        return self._accepted(version) if version else None

    def _unchanged(self, arrived: Arrived) -> Verdict | None:
        """The answer when the active version has equal content already."""
        ref = self._registry.active().get(arrived.upload.name)
        for version in self._registry.versions(arrived.upload.name):
            if version.ref == ref and version.sha256 == arrived.sha256:
                return _unchanged_at(version.ref)
        return None

    def _published(self, arrived: Arrived) -> Verdict:
        """Gives the upload its version and puts everything in its place, the log entry last."""
        ref = self._claimed(arrived.upload.name)
        for name in STAGED:
            self._store.upload(arrived.path(name), keys.adapter(ref) + name)
        doubts = tuple(self._describe(ref, arrived.samples) or ())
        card = self._card(arrived, ref, doubts)
        self._store.create(card_key(ref), card.model_dump_json().encode())
        entry = LogEntry(
            op="add",
            name=ref.name,
            version=ref.version,
            at=utc_now().isoformat(),
            sha256=arrived.sha256,
            owner=arrived.upload.owner,
            upload_id=self._upload_id,
        )
        version = self._registry.add(entry)
        if version.upload_id != self._upload_id:  # an equal upload was faster
            return _unchanged_at(version.ref)
        return self._accepted(version)

    def _claimed(self, name: str) -> AdapterRef:
        """The first version number that is free, or was claimed by this upload before a cut."""
        known = self._registry.versions(name)
        claim = to_json({"upload_id": self._upload_id})
        for version in itertools.count(known[-1].ref.version + 1 if known else 1):
            ref = AdapterRef(name, version)
            if self._store.create(keys.adapter(ref) + CLAIM_FILE, claim):
                return ref
        raise AssertionError("itertools.count ended")

    def _card(self, arrived: Arrived, ref: AdapterRef, doubts: tuple[str, ...]) -> Card:
        ranks = arrived.found.ranks
        return Card(
            name=ref.name,
            version=ref.version,
            owner=arrived.upload.owner,
            created_at=arrived.upload.created_at,
            upload_id=self._upload_id,
            sha256=arrived.sha256,
            base=self._base.fingerprint,
            targets=tuple(sorted({target.rpartition(".")[2] for target in ranks})),
            ranks=ranks,
            dtype=arrived.found.dtype,
            num_samples=len(arrived.samples),
            size_bytes=arrived.found.size_bytes,
            files={name: arrived.upload.files[name] for name in STAGED},
            warnings=arrived.found.warnings + doubts,
        )

    def _accepted(self, version: AdapterVersion) -> Verdict:
        warnings: tuple[str, ...] = ()
        with suppress(NotFoundError):
            warnings = read_card(self._store, version.ref).warnings
        ref = version.ref
        return Verdict(status="accepted", name=ref.name, version=ref.version, warnings=warnings)
