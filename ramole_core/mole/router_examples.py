"""The examples that a router learns from, and the draws of its training: lists only, no tensor.

Everything random comes from the `random.Random` that is passed in, so equal seeds draw equally.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import InvalidInputError
from ramole_core.mole.gates import Mix

MIN_EXPERTS: Final = 2  # of one example; adapters in all, and examples of one adapter
TRAINED: Final = "in training"  # the version that marks a mix as routed

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A prompt with the answer to learn and the adapter that was made for it."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]  # the end-of-text token included
    own: AdapterRef
    similarities: Mapping[AdapterRef, float] = field(default_factory=dict)  # empty: no prior


@dataclass(frozen=True)
class Draw:
    """An example and the experts that may answer it. `experts` are among the `candidates`."""

    example: Example
    candidates: tuple[AdapterRef, ...]
    experts: tuple[AdapterRef, ...]

    def mix(self, prior: bool, tau: float) -> Mix:
        """The gate of this draw: what inference would do with these experts."""
        known = self.example.similarities
        return Mix(
            gate="mole" if prior else "mole-plain",
            experts=self.experts,
            similarities=tuple(known[ref] for ref in self.experts) if prior else (),
            router=TRAINED,
            tau=tau,
        )


def training_adapters(examples: Sequence[Example]) -> tuple[AdapterRef, ...]:
    """The adapters of `examples`, sorted. Raises InvalidInputError for fewer than two, and for an
    adapter with fewer than two examples: one is to learn from, one to measure."""
    counts: dict[AdapterRef, int] = defaultdict(int)
    for example in examples:
        counts[example.own] += 1
    if len(counts) < MIN_EXPERTS:
        raise InvalidInputError(f"examples of {len(counts)} adapters: a router needs two or more")
    poorest = min(sorted(counts), key=lambda ref: counts[ref])
    if counts[poorest] < MIN_EXPERTS:
        raise InvalidInputError(
            f"adapter {poorest} has 1 example: give two or more for each adapter"
        )
    return tuple(sorted(counts))


def split(
    examples: Sequence[Example], share: float, rng: random.Random
) -> tuple[list[Example], list[Example]]:
    """(to learn from, held out): of every adapter about `share`, at least one each way."""
    by_adapter: dict[AdapterRef, list[Example]] = defaultdict(list)
    for example in examples:
        by_adapter[example.own].append(example)
    learned: list[Example] = []
    held_out: list[Example] = []
    for ref in sorted(by_adapter):
        own = by_adapter[ref]
        rng.shuffle(own)
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held_out += own[:count]
        learned += own[count:]
    return learned, held_out


def batches(items: Sequence[T], size: int, rng: random.Random) -> Iterator[list[T]]:
    """Batches without end; every item comes once before any comes again."""
    batch: list[T] = []
    while True:
        for item in rng.sample(items, len(items)):
            batch.append(item)
            if len(batch) == min(size, len(items)):
                yield batch
                batch = []


def draw_candidates(
    own: AdapterRef, adapters: Sequence[AdapterRef], count: int | None, rng: random.Random
) -> tuple[AdapterRef, ...]:
    """All `adapters`, or `own` and others at random, `count` together; in their order."""
    if count is None or count >= len(adapters):
        return tuple(adapters)
    chosen = {own, *rng.sample([ref for ref in adapters if ref != own], count - 1)}
    return tuple(ref for ref in adapters if ref in chosen)


def drop_experts(
    experts: Sequence[AdapterRef], probability: float, rng: random.Random
) -> tuple[AdapterRef, ...]:
    """Random expert dropout (RAMoLE, eq. 13): each is dropped with `probability`, two are kept."""
    kept = {ref for ref in experts if rng.random() >= probability}
    dropped = [ref for ref in experts if ref not in kept]
    kept.update(rng.sample(dropped, min(max(MIN_EXPERTS - len(kept), 0), len(dropped))))
    return tuple(ref for ref in experts if ref in kept)
