"""From the outcome of a rehearsal to rows."""

from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.chaos.rehearsal import Outcome
from benchmarks.report import Row

LEAST_RESULTS: Final = 100.0  # less is no load
# Seconds within which all that a fault orphaned has to be there.
LIMITS: Final = {"worker_kill": 20.0, "redis_wipe": 60.0, "redis_wipe_recover": 60.0}


def rows_of(outcome: Outcome) -> Iterator[Row]:
    """The promises, then the recovery after each kind of fault, then what it was measured on."""
    verdict = outcome.verdict
    for name in ("lost", "doubled", "wrong"):
        yield Row(name, float(getattr(verdict, name)), "prompts", 0.0, "lower")
    for name, count in {
        "miscounted_jobs": verdict.miscounted,
        "jobs_without_end": len(outcome.not_ended),
    }.items():
        yield Row(name, float(count), "jobs", 0.0, "lower")
    yield from _recovery_rows(outcome)
    for kind, struck in sorted(outcome.struck.items()):
        yield Row(f"faults_{kind}", float(struck), "faults")
    yield from _measured_on(outcome)


def _recovery_rows(outcome: Outcome) -> Iterator[Row]:
    """A limit that was never put to the test is not met."""
    measured = {found.kind for found in outcome.recoveries if found.alone}
    missing = [kind for kind in LIMITS if kind in outcome.struck and kind not in measured]
    yield Row("recoveries_not_measured", float(len(missing)), "kinds", 0.0, "lower")
    for found in outcome.recoveries:
        name = f"recovery_{found.kind}"
        if found.alone:
            yield Row(f"{name}_max", max(found.alone), "s", LIMITS.get(found.kind), "lower")
            yield Row(f"{name}_median", median(found.alone), "s", better="lower")
        if found.again:
            yield Row(f"{name}_again_max", max(found.again), "s", better="lower")


def _measured_on(outcome: Outcome) -> Iterator[Row]:
    verdict = outcome.verdict
    yield Row("faults", float(sum(outcome.struck.values())), "faults")
    yield Row("jobs", float(outcome.num_jobs), "jobs")
    yield Row("prompts", float(verdict.prompts), "prompts")
    yield Row("results", float(verdict.results), "prompts", LEAST_RESULTS)
    yield Row("cancelled", float(verdict.cancelled), "prompts")
    for kind in ("beside", "alone"):
        yield Row(f"charged_{kind}", float(verdict.deaths[kind]), "prompts", better="lower")
    yield Row("longest_shard", outcome.longest_shard, "s", better="lower")
    yield Row("drained", outcome.drained, "s", better="lower")
