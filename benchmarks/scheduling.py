"""The scheduler beside first come, first served: a simulation without a model.

    python -m benchmarks.scheduling [--json PATH]

512 prompts in random order wait at once; each wants its own adapter and two others of its family.
A step gives every running prompt one token; a prompt that has all its tokens leaves, and free slots
are filled before the next step. `equal`: every answer has 32 tokens. `zipf`: 4 to 128 tokens, with
probability as 1 / length, of which the scheduler knows the maximum only. Reported, as means over
the seeds: unique experts and prompts in the running batch (mean over steps), the steps until all is
answered, how long a prompt waits (99th percentile, steps), how many that came later enter before it
(99th percentile), and the time of choosing a full batch.
"""

import argparse
import statistics
import sys
import time
from bisect import bisect_right, insort
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol, cast

from benchmarks.report import Row, report
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.engine.scheduler import Scheduler, rectangle
from ramole_core.engine.sequence import Sequence

NUM_PROMPTS: Final = 512
SLOTS: Final = 32
WINDOW: Final = 128
BANK_SIZE: Final = 64
MAX_BATCH_TOKENS: Final = 65536
SEEDS: Final = 5
LONGEST: Final = 128
STREAMS: Final = {  # (families, adapters of each, lengths of answers)
    "48_equal": (8, 6, "equal"),
    "48_zipf": (8, 6, "zipf"),
    "1000_equal": (10, 100, "equal"),
    "1000_zipf": (10, 100, "zipf"),
}
TARGETS: Final = {"48_equal": 14.0}  # unique experts under the policy
MAX_CHOICE_MS: Final = 5.0


class Policy(Protocol):
    """What the scheduler and the one that it is compared with have in common."""

    def __len__(self) -> int: ...
    def add(self, sequence: Sequence) -> None: ...
    def admit(self, now: float, running: Many[Sequence]) -> list[Sequence]: ...


class FirstCome:
    """The oldest enter in their order, as many as the limits let in."""

    def __init__(self) -> None:
        self._line: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._line)

    def add(self, sequence: Sequence) -> None:
        self._line.append(sequence)

    def admit(self, now: float, running: Many[Sequence]) -> list[Sequence]:
        chosen: list[Sequence] = []
        while self._line and self._fits([*running, *chosen, self._line[0]]):
            chosen.append(self._line.pop(0))
        return chosen

    def _fits(self, batch: Many[Sequence]) -> bool:
        return (
            len(batch) <= SLOTS
            and rectangle(batch) <= MAX_BATCH_TOKENS
            and num_experts(batch) <= BANK_SIZE
        )


@dataclass(frozen=True)
class Outcome:
    """One simulated run."""

    unique_experts: float
    prompts_running: float
    steps: float
    wait_steps_p99: float
    overtaken_p99: float


def main() -> int:
    """Runs all streams; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    arguments = parser.parse_args()
    rows = [row for name in STREAMS for row in measure(name)]
    rows.append(Row("choice_of_32_ms", choice_ms(), "ms", MAX_CHOICE_MS, better="lower"))
    settings = {
        "prompts": NUM_PROMPTS,
        "slots": SLOTS,
        "window": WINDOW,
        "bank_size": BANK_SIZE,
        "seeds": SEEDS,
    }
    report(rows, settings, arguments.json)
    return 1 if any(row.met is False for row in rows) else 0


def measure(name: str) -> list[Row]:
    """Rows of one stream: first come, first served, then the scheduler."""
    policies: dict[str, Callable[[], Policy]] = {"fifo": FirstCome, "policy": scheduler}
    rows = []
    for label, policy in policies.items():
        runs = [simulate(policy(), *stream(name, Random(seed))) for seed in range(SEEDS)]
        target = TARGETS.get(name) if label == "policy" else None
        unique = statistics.mean(run.unique_experts for run in runs)
        rows.append(Row(f"{name}_{label}_unique_experts", unique, "experts", target, "lower"))
        for quantity, unit in (
            ("prompts_running", "prompts"),
            ("steps", "steps"),
            ("wait_steps_p99", "steps"),
            ("overtaken_p99", "prompts"),
        ):
            value = statistics.mean(getattr(run, quantity) for run in runs)
            rows.append(Row(f"{name}_{label}_{quantity}", value, unit))
    return rows


def scheduler() -> Scheduler:
    """The engine's, with its default limits and no interval."""
    return Scheduler(SLOTS, MAX_BATCH_TOKENS, BANK_SIZE, 0.0, WINDOW)


def stream(name: str, random: Random) -> tuple[list[Sequence], list[int]]:
    """The prompts in their order, and how many tokens each is going to have."""
    num_families, size, kind = STREAMS[name]
    refs = [[AdapterRef(f"f{f}-{i}", 1) for i in range(size)] for f in range(num_families)]
    prompts, lengths = [], []
    for number in range(NUM_PROMPTS):
        family = refs[number % num_families]
        experts = random.sample(family, 3)
        length, limit = (32, 32) if kind == "equal" else (zipf(random), LONGEST)
        prompts.append(prompt(number, experts, random.randint(16, 64), limit))
        lengths.append(length)
    order = random.sample(range(NUM_PROMPTS), NUM_PROMPTS)
    return [prompts[i] for i in order], [lengths[i] for i in order]


def zipf(random: Random) -> int:
    """4 to LONGEST tokens, each with a probability as 1 / length."""
    lengths = range(4, LONGEST + 1)
    return random.choices(lengths, [1 / length for length in lengths])[0]


def prompt(number: int, experts: Many[AdapterRef], length: int, limit: int) -> Sequence:
    """A prompt of `length` tokens that nobody decodes: it needs no stop rule."""
    request = GenerationRequest(str(number), experts=tuple(Expert(ref, 0.5) for ref in experts))
    return Sequence(request, [1] * length, limit, cast(Any, None), 0.0, request.mix())


def simulate(policy: Policy, prompts: Many[Sequence], lengths: Many[int]) -> Outcome:
    """Until all are answered."""
    places = {id(s): place for place, s in enumerate(prompts)}
    left = {id(s): length for s, length in zip(prompts, lengths, strict=True)}
    for sequence in prompts:
        policy.add(sequence)
    running: list[Sequence] = []
    entered: list[int] = []  # places, in the order of entering
    waits: list[int] = []
    unique: list[int] = []
    used: list[int] = []
    while policy or running:
        chosen = policy.admit(0.0, running)
        entered += sorted(places[id(s)] for s in chosen)  # those of one moment pass nobody
        waits += [len(unique)] * len(chosen)
        running += chosen
        unique.append(num_experts(running))
        used.append(len(running))
        for sequence in running:
            left[id(sequence)] -= 1
        running = [s for s in running if left[id(s)]]
    return Outcome(
        statistics.mean(unique),
        statistics.mean(used),
        len(unique),
        percentile99(waits),
        percentile99(overtaken(entered)),
    )


def num_experts(batch: Many[Sequence]) -> int:
    """Unique experts of a batch."""
    return len({ref for s in batch for ref in s.adapters})


def overtaken(entered: Many[int]) -> list[int]:
    """For each place, in the order of entering: how many higher ones entered before it."""
    before: list[int] = []
    counts = []
    for place in entered:
        counts.append(len(before) - bisect_right(before, place))
        insort(before, place)
    return counts


def percentile99(values: Many[int]) -> float:
    """The smallest value that 99 % do not exceed."""
    return float(sorted(values)[-(-len(values) * 99 // 100) - 1])


def choice_ms() -> float:
    """Milliseconds of choosing a full batch from a full window: the slowest stream's median."""
    times: dict[str, list[float]] = {name: [] for name in STREAMS}
    for name, kept in times.items():
        for seed in range(SEEDS):
            policy = scheduler()
            for sequence in stream(name, Random(seed))[0]:
                policy.add(sequence)
            began = time.perf_counter()
            policy.admit(0.0, [])
            kept.append(1000 * (time.perf_counter() - began))
    return max(statistics.median(kept) for kept in times.values())


if __name__ == "__main__":
    sys.exit(main())
