"""What is raced against what, and which rows come of it.

Every measurement builds its entrants over one world, races them and reads its rows off their runs.
A target is that of float32 and that of bfloat16.
"""

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from benchmarks.engine.disk import DiskPool
from benchmarks.engine.entrants import EngineEntrant, check_agreement
from benchmarks.engine.peers import Generate, Merged, Peft, groups_of
from benchmarks.engine.race import Entrant, Kind, Runs
from benchmarks.engine.sizes import BATCH, Scale
from benchmarks.engine.workload import (
    DECADE,
    Prompt,
    covering_triples,
    family_triples,
    pool_triples,
    prompts,
    random_triples,
    zipf_lengths,
)
from benchmarks.engine.world import World

Entrants = Mapping[str, Entrant]
Results = Mapping[str, Runs]
SMALL_POOL, LARGE_POOL = DECADE, 1000
SHORT: Final = 9  # tokens: enough steps to time


@dataclass(frozen=True)
class Ratio:
    """A row: speed of `of` as a multiple of that of `over`; of one kind of step, or of all."""

    name: str
    of: str
    over: str
    targets: tuple[float, float] | None = None
    kind: Kind | None = None

    def value(self, results: Results) -> float:
        """Medians over the rounds, divided."""
        fast, slow = results[self.of], results[self.over]
        if self.kind is None:
            return fast.tokens / slow.tokens
        return fast.rows(self.kind) / slow.rows(self.kind)


@dataclass(frozen=True)
class Measurement:
    """One race. `entrants` may enter what must be left after it into the stack it is given."""

    name: str
    rows: tuple[Ratio, ...]
    entrants: Callable[[World, Scale, ExitStack], Entrants]
    rounds: Callable[[Scale], int] = lambda scale: scale.rounds


def _generate(world: World, scale: Scale, stack: ExitStack) -> Entrants:
    """One batch of equal lengths."""
    work = _families(world, BATCH)
    return {
        "base": EngineEntrant(*world.engine(), [p.without() for p in work]),
        "generate": Generate(world.plain(), work),
    }


def _queue(world: World, scale: Scale, stack: ExitStack) -> Entrants:
    """A long queue: without adapters, mixed, and mixed with nothing in common and in the order of
    arrival (the scheduler looks no further than at the next batch)."""
    work = _families(world, scale.queue)
    rng = random.Random(1)
    triples = random_triples(scale.queue, world.shape.adapters, rng)
    distinct = [
        Prompt(p.ids, q.experts)
        for p, q in zip(work, prompts(triples, world.shape, rng), strict=True)
    ]
    return {
        "base_queue": EngineEntrant(*world.engine(), [p.without() for p in work]),
        "mole_queue": EngineEntrant(*world.engine(), [p.with_experts() for p in work]),
        "mole_distinct": EngineEntrant(
            *world.engine(window=BATCH), [p.with_experts() for p in distinct]
        ),
    }


def _peft(world: World, scale: Scale, stack: ExitStack) -> Entrants:
    """One batch in which every prompt has an adapter of its own."""
    rng = random.Random(2)
    work = prompts(covering_triples(BATCH, 4, rng), world.shape, rng)
    return {
        "mole_batch": EngineEntrant(*world.engine(), [p.with_experts() for p in work]),
        "peft": Peft(world.plain(), work, world.adapters.weights),
    }


def _published(world: World, scale: Scale, stack: ExitStack) -> Entrants:
    """One batch with short answers; both must be sure of the same tokens before they race."""
    work = [replace(p, new_tokens=SHORT) for p in _families(world, BATCH)]
    requests = [p.with_experts() for p in work]
    ours = EngineEntrant(*world.engine(), requests)
    theirs = EngineEntrant(*world.published_engine(), requests)
    check_agreement(ours, theirs, world.dtype == torch.float32)
    return {"mole_short": ours, "published": theirs}


def _merged(world: World, scale: Scale, stack: ExitStack) -> Entrants:
    """A batch of the queue, and a sample of the groups that merging makes of the queue."""
    work = _families(world, scale.queue)
    sample = [p for group in groups_of(work)[: scale.groups] for p in group]
    return {
        "mole_part": EngineEntrant(*world.engine(), [p.with_experts() for p in work[: 2 * BATCH]]),
        "merged": Merged(world.private(), sample, world.adapters.weights),
    }


def _lengths(world: World, scale: Scale, stack: ExitStack) -> Entrants:
    """Answers of very different lengths; `static` fills its slots only when all are empty."""
    rng = random.Random(3)
    triples = _triples(world, scale.lengths, rng)
    work = prompts(triples, world.shape, rng, zipf_lengths(scale.lengths, rng))
    requests = [p.with_experts() for p in work]
    return {
        "continuous": EngineEntrant(*world.engine(), requests),
        "static": EngineEntrant(*world.engine(refill_share=1.0), requests),
    }


def _pool(world: World, scale: Scale, stack: ExitStack) -> Entrants:
    """Two pools of very different sizes, read from disk when the bank does not hold an adapter."""
    shape = world.shape
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="ramole-pool-")))
    entrants = {}
    for pool in (SMALL_POOL, LARGE_POOL):
        source = DiskPool(folder / str(pool), world.targets, shape.rank, shape.files)
        work = prompts(pool_triples(scale.pool, pool, 4), shape, random.Random(4))
        requests = [p.with_experts() for p in work]
        engine = world.engine(source, window=BATCH)  # block by block: as many experts in both
        entrants[f"pool_{pool}"] = EngineEntrant(*engine, requests, warm=False)
    return entrants


def _triples(world: World, num: int, rng: random.Random) -> list[list[int]]:
    return family_triples(num, world.shape.adapters, world.shape.family, rng)


def _families(world: World, num: int) -> list[Prompt]:
    """The first `num` prompts of the main workload."""
    triples = _triples(world, num, random.Random(0))
    return prompts(triples, world.shape, random.Random(1))


MEASUREMENTS: Final = (
    Measurement(
        "generate", (Ratio("base_vs_generate", "base", "generate", (1.1, 1.1)),), _generate
    ),
    Measurement(
        "queue",
        (
            Ratio("mole_vs_base", "mole_queue", "base_queue", (0.85, 0.80)),
            Ratio("mole_vs_base_prefill", "mole_queue", "base_queue", kind="prefill"),
            Ratio("mole_vs_base_decode", "mole_queue", "base_queue", kind="decode"),
            Ratio("mole_distinct_vs_base", "mole_distinct", "base_queue", (0.65, 0.55)),
        ),
        _queue,
        lambda scale: scale.long_rounds,
    ),
    Measurement("peft", (Ratio("mole_vs_peft", "mole_batch", "peft", (1.5, 2.0)),), _peft),
    Measurement(
        "published",
        (
            Ratio("mole_vs_published_decode", "mole_short", "published", (1.3, 1.3), "decode"),
            Ratio("mole_vs_published_prefill", "mole_short", "published", (3.0, 3.0), "prefill"),
        ),
        _published,
    ),
    Measurement("merged", (Ratio("mole_vs_merged", "mole_part", "merged"),), _merged),
    Measurement(
        "lengths",
        (Ratio("continuous_vs_static", "continuous", "static", (1.8, 1.8)),),
        _lengths,
        lambda scale: scale.long_rounds,
    ),
    Measurement(
        "pool",
        (Ratio("pool_1000_vs_10", "pool_1000", "pool_10", (0.95, 0.95)),),
        _pool,
        lambda scale: scale.long_rounds,
    ),
)
