"""From the rounds of both sides to rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.end_to_end.alone import AloneRound
from benchmarks.end_to_end.through import ThroughRound
from benchmarks.report import Row

TARGET: Final = 0.95


@dataclass(frozen=True)
class Rounds:
    """Rounds of both sides on the same prompts, in pairs that ran one after the other."""

    num_prompts: int
    through: Sequence[ThroughRound]
    alone: Sequence[AloneRound]

    def num_differing(self) -> int:
        """Answers of all rounds and sides that are not those of the first."""
        first, *others = [r.texts for r in self.alone] + [r.texts for r in self.through]
        return sum(a != b for texts in others for a, b in zip(first, texts, strict=True))


def rows_of(rounds: Rounds, target: float | None = TARGET) -> Iterator[Row]:
    """The ratio of the medians, then what it is made of: medians over the rounds. A worker may
    begin before the producer has returned: then the wait is negative."""
    through, alone = rounds.through, rounds.alone
    seconds = median(r.seconds for r in through), median(r.seconds for r in alone)
    pairs = [a.seconds / t.seconds for a, t in zip(alone, through, strict=True)]
    yield Row("end_to_end_vs_engine", seconds[1] / seconds[0], "x", target)
    yield Row("differing_answers", float(rounds.num_differing()), "answers", 0.0, "lower")
    yield Row("lowest_of_a_round", min(pairs), "x")
    yield Row("highest_of_a_round", max(pairs), "x")
    yield Row("end_to_end_per_second", rounds.num_prompts / seconds[0], "prompts/s")
    yield Row("engine_per_second", rounds.num_prompts / seconds[1], "prompts/s")
    parts = {
        "submit_seconds": [r.submitted for r in through],
        "queue_wait_seconds": [r.begun - r.submitted for r in through],
        "first_output_seconds": [r.first_stored - r.begun for r in through],
        "other_outputs_seconds": [r.last_stored - r.first_stored for r in through],
        "final_record_seconds": [r.seconds - r.last_stored for r in through],
        "engine_retrieval_seconds": [r.retrieved for r in alone],
        "engine_rest_seconds": [r.seconds - r.retrieved for r in alone],
        "worker_cpu_seconds": [r.cpu_seconds for r in through],
        "engine_cpu_seconds": [r.cpu_seconds for r in alone],
    }
    for name, values in parts.items():
        yield Row(name, median(values), "s", better="lower")
