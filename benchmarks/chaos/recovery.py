"""How long it took until what a fault orphaned was there after all.

From every strike to the output of every shard that it orphaned, less a shard's undisturbed time. A
shard that was struck again in the meantime is kept apart: what it took is due to both strikes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    """One kind of fault: seconds until the last of what a strike orphaned was there, by strike.
    `again`: the same where shards were struck once more in between."""

    kind: str
    alone: tuple[float, ...]
    again: tuple[float, ...]


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
    """By kind, of the strikes that orphaned something."""
    victims = [(s, _victims(s, shards)) for s in sorted(strikes, key=lambda strike: strike.at)]
    last: dict[ShardName, Strike] = {}
    for strike, names in victims:
        last.update(dict.fromkeys(names, strike))
    alone: dict[str, list[float]] = defaultdict(list)
    again: dict[str, list[float]] = defaultdict(list)
    for strike, names in victims:
        for seconds, wanted in ((alone, True), (again, False)):
            took = [
                max(0.0, shards[name].stored - strike.at - undisturbed)
                for name in names
                if (last[name] is strike) == wanted
            ]
            if took:
                seconds[strike.kind].append(max(took))
    return [
        Recovery(kind, tuple(alone[kind]), tuple(again[kind])) for kind in sorted({*alone, *again})
    ]


def _victims(strike: Strike, shards: dict[ShardName, Life]) -> list[ShardName]:
    """The shards it orphaned, whose output is younger."""
    names = shards.keys() if strike.shards is None else strike.shards & shards.keys()
    return [name for name in names if shards[name].submitted < strike.at < shards[name].stored]
