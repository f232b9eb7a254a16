"""One rehearsal from start to end: system, calm run, load and faults, drain, judgement."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.chaos.cuts import DirectoryCut, StoreCut, s3_cut
from benchmarks.chaos.faults import Villain
from benchmarks.chaos.load import Load
from benchmarks.chaos.pool import calm_run, make_records, upload_staying
from benchmarks.chaos.recovery import Recovery, lives, recoveries
from benchmarks.chaos.script import script
from benchmarks.chaos.verdict import Judge, Verdict
from producer.client import Client
from producer.embedded.temporary import temporary_system

NUM_WORKERS: Final = 3
DRAIN_SECONDS: Final = 120.0
CALM_END_SECONDS: Final = 2.0  # the load goes on for so long after the last fault
WORKER: Final = {"RAMOLE_TORCH_THREADS": "1", "RAMOLE_DTYPE": "float32"}

StoreKind = Literal["directory", "s3"]


@dataclass(frozen=True)
class Outcome:
    """What a rehearsal found. `struck`: faults that came about, by kind. `drained`: seconds from
    the last fault's end until all had ended; `not_ended`: jobs that had not by the limit."""

    verdict: Verdict
    struck: dict[str, int]
    recoveries: list[Recovery]
    num_jobs: int
    not_ended: set[str]
    longest_shard: float
    drained: float


def rehearse(
    seconds: float, num_faults: int, seed: int, store: StoreKind = "directory", keep: bool = False
) -> Outcome:
    """Raises SystemExit when even the calm run fails."""
    with _system(store, keep) as (client, cut):
        records = make_records()
        upload_staying(client)
        expected = calm_run(client, records)
        _say(f"calm run: {3 * len(records)} answers, {expected.seconds:.2f} s a shard")
        load, villain = Load(client.settings, records, seed), Villain(client, cut)
        try:
            load.start()
            villain.run(script(seed, seconds, num_faults))
        finally:
            villain.make_good()
        time.sleep(CALM_END_SECONDS)
        began = time.monotonic()
        not_ended = load.drain(DRAIN_SECONDS)
        drained = time.monotonic() - began
        judge = Judge(client.store, expected)
        for plan in load.jobs:
            judge.judge(plan, load.outputs.get(plan.job_id, {}))
        shards = lives(client.store, [plan.job_id for plan in load.jobs])
        return Outcome(
            verdict=judge.verdict,
            struck=villain.count,
            recoveries=recoveries(villain.strikes, shards, expected.seconds),
            num_jobs=len(load.jobs),
            not_ended=not_ended,
            longest_shard=max((s.stored - s.submitted for s in shards.values()), default=0.0),
            drained=drained,
        )


@contextmanager
def _system(store: StoreKind, keep: bool) -> Iterator[tuple[Client, StoreCut]]:
    if store == "s3":
        forwarder, variables = s3_cut()
        with temporary_system("ramole-chaos-", keep, WORKER | variables, NUM_WORKERS) as client:
            yield client, forwarder
    else:
        with temporary_system("ramole-chaos-", keep, WORKER, NUM_WORKERS) as client:
            if keep:
                _say(f"data folder {client.settings.home}")
            yield client, DirectoryCut(client.settings.home / "store")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
