"""Which faults strike, when and whom: drawn from the seed alone."""

import random
from dataclasses import dataclass
from typing import Final

# One round of faults; every round is shuffled.
ROUND: Final = (
    "worker_kill",
    "worker_kill",
    "worker_kill",
    "worker_freeze",
    "worker_freeze",
    "redis_kill",
    "redis_freeze",
    "redis_wipe",
    "redis_wipe_recover",
    "store_cut",
    "registry_change",
    "registry_change",
)
# Seconds from and to; what is not named is one blow. A worker is frozen for longer than its lease.
LASTS: Final[dict[str, tuple[float, float]]] = {
    "worker_freeze": (10.0, 16.0),
    "redis_freeze": (3.0, 12.0),
    "store_cut": (3.0, 10.0),
}


@dataclass(frozen=True)
class Fault:
    """One fault, `at` seconds after the first job. `pick` chooses among those it may strike."""

    at: float
    kind: str
    seconds: float
    pick: int


def script(seed: int, seconds: float, count: int) -> list[Fault]:
    """`count` faults within `seconds`: one in each of as many spans of equal length."""
    chance = random.Random(f"faults {seed}")
    span = seconds / count
    kinds = _kinds(chance, count)
    return [_fault(chance, kind, (i + chance.random()) * span) for i, kind in enumerate(kinds)]


def _kinds(chance: random.Random, count: int) -> list[str]:
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += chance.sample(ROUND, len(ROUND))
    return kinds[:count]


def _fault(chance: random.Random, kind: str, at: float) -> Fault:
    low, high = LASTS.get(kind, (0.0, 0.0))
    return Fault(at, kind, chance.uniform(low, high), chance.randrange(1 << 16))
