"""Who is to blame for the death of a worker process, and what becomes of the suspects.

A death is charged to the prompts of the step that it happened in, not to the shards that the
process held: those get their attempt back, and are free for others at once. Where no prompt ran,
and where shards were being prepared (read, embedded, tokenised) beside those that did, the shards
concerned keep the attempt: a shard that is begun too often has its prompts failed in the end.
A charged prompt runs once more with nobody beside it, while nothing is prepared. One that has died
like that `max_alone` times is failed. So a prompt that kills its process costs the others at most
one more run, and chance deaths cost no prompt that ran its answer. All of it lies in the store, one
object for each death of a prompt, so that it survives an empty Redis; every step may be repeated.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramole_core import keys
from ramole_core.errors import PromptError
from ramole_core.jobs import utc_now
from ramole_core.store import ObjectStore
from ramole_core.store.base import to_json
from worker.journal import PromptRef, Record, found_dead
from worker.ledger import Claim

logger = logging.getLogger(__name__)

ALONE, BESIDE = "alone", "beside"


@dataclass(frozen=True)
class Charges:
    """The deaths of one job's prompts, by their indices."""

    alone: Counter[int]  # with nobody beside them
    beside: Counter[int]  # with others

    def is_suspect(self, index: int) -> bool:
        """It must run with nobody beside it."""
        return bool(self.alone[index] or self.beside[index])

    def error(self, index: int, max_alone: int) -> PromptError | None:
        """Why the prompt is not tried any more; None: it is."""
        alone, beside = self.alone[index], self.beside[index]
        if alone < max_alone:
            return None
        return PromptError(
            "worker_lost",
            f"the worker process died {alone + beside} times while this prompt ran, {alone} times "
            "with nobody beside it",
        )


def charges_of(store: ObjectStore, job_id: str) -> Charges:
    """One listing."""
    found = {ALONE: Counter[int](), BESIDE: Counter[int]()}
    prefix = keys.deaths(job_id)
    for entry in store.entries(prefix):
        index, _, name = entry.key.removeprefix(prefix).partition("/")
        kind, _, worker = name.removesuffix(".json").partition("-")
        if not index.isdecimal() or kind not in found or "/" in worker:
            continue
        if entry.key == keys.death(job_id, int(index), f"{kind}-{worker}"):
            found[kind][int(index)] += 1
    return Charges(found[ALONE], found[BESIDE])


class Coroner:
    """Looks into the deaths that the journals of one data folder show."""

    def __init__(self, folder: Path, store: ObjectStore, pardon: Callable[[Claim], object]) -> None:
        self._folder = folder
        self._store = store
        self._pardon = pardon

    def look(self) -> None:
        """Charges and pardons. Raises on an outage; the next call does the rest."""
        with found_dead(self._folder) as records:
            for record in records:
                self._judge(record)

    def _judge(self, record: Record) -> None:
        alone = len(record.running) == 1 and (record.running[0].alone or not record.preparing)
        for ref in record.running:
            self._charge(ref, record, alone)
        guilty = () if alone else record.preparing
        if not (record.running or guilty):
            guilty = record.claims
        pardoned = [claim for claim in record.claims if claim not in guilty]
        for claim in pardoned:
            self._store.delete(keys.attempt(claim.ref.job_id, claim.ref.shard, claim.attempt))
            self._pardon(claim)
        logger.warning(
            "worker %s died: charged to %s", record.worker, _shown(record.running, guilty)
        )

    def _charge(self, ref: PromptRef, record: Record, alone: bool) -> None:
        kind = ALONE if alone else BESIDE
        note = {"at": utc_now().isoformat(), "beside": len(record.running) - 1}
        key = keys.death(ref.job_id, ref.index, f"{kind}-{record.worker}")
        self._store.put(key, to_json(note))


def _shown(running: Sequence[PromptRef], guilty: Sequence[Claim]) -> str:
    prompts = [f"{ref.job_id}[{ref.index}]" for ref in running]
    shards = [claim.ref.member for claim in guilty]
    return ", ".join([*prompts[:5], *(["…"] if len(prompts) > 5 else []), *shards]) or "nobody"
