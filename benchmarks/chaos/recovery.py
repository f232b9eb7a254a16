"""How long it took until what a fault orphaned was there after all.

Of a shard that was struck more than once, the last strike counts: only then could it be done. Its
undisturbed time is taken off.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.chaos.faults import ShardName, Strike
from benchmarks.chaos.pool import output_times
from ramole_core.job_files import JobFiles
from ramole_core.jobs import parse_time
from ramole_core.store import ObjectStore


@dataclass(frozen=True)
class Life:
    """Unix times of one shard's submission and output."""

    submitted: float
    stored: float


@dataclass(frozen=True)
class Recovery:
    """One kind of fault: how often something was orphaned, and the seconds (median, maximum) until
    the last of it was there."""

    kind: str
    count: int
    median: float
    maximum: float


def lives(store: ObjectStore, job_ids: Iterable[str]) -> dict[ShardName, Life]:
    """Every shard that has an output."""
    found = {}
    for job_id in job_ids:
        manifest = JobFiles(store, job_id).find_manifest()
        if manifest is not None:
            submitted = parse_time(manifest.created_at).timestamp()
            for shard, stored in output_times(store, job_id).items():
                found[job_id, shard] = Life(submitted, stored)
    return found


def recoveries(
    strikes: Sequence[Strike], shards: dict[ShardName, Life], undisturbed: float
) -> list[Recovery]:
    """By kind, of the strikes that were the last for some shard."""
    last: dict[ShardName, Strike] = {}
    for strike in sorted(strikes, key=lambda s: s.at):
        last.update(dict.fromkeys(_victims(strike, shards), strike))
    seconds: dict[Strike, float] = defaultdict(float)
    for name, strike in last.items():
        seconds[strike] = max(seconds[strike], shards[name].stored - strike.at - undisturbed)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for strike, value in seconds.items():
        by_kind[strike.kind].append(value)
    return [
        Recovery(kind, len(values), median(values), max(values))
        for kind, values in sorted(by_kind.items())
    ]


def _victims(strike: Strike, shards: dict[ShardName, Life]) -> list[ShardName]:
    """The shards it orphaned, whose output is younger."""
    names = shards.keys() if strike.shards is None else strike.shards & shards.keys()
    return [name for name in names if shards[name].submitted < strike.at < shards[name].stored]
