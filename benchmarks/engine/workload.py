"""The prompts of every row: token ids, the adapters of each, and how long its answer is.

Everything is drawn from the `random.Random` that the caller gives: same seed, same workload. A
prompt's first expert is its own adapter, the two others are what retrieval found beside it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.engine.sizes import BATCH, NEW_TOKENS, PROMPT_TOKENS, K, Shape
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.request import Expert, GenerationRequest

SIMILARITIES: Final = (0.6, 0.55, 0.5)
ROUTER: Final = "random"
DECADE: Final = 10  # adapters that a block of the pool rows uses: a family of 6 and one of 4
SHORTEST, LONGEST = 4, 128


@dataclass(frozen=True)
class Prompt:
    """One prompt. `experts` are best first."""

    ids: tuple[int, ...]
    experts: tuple[AdapterRef, ...]
    new_tokens: int = NEW_TOKENS

    def with_experts(self) -> GenerationRequest:
        """Gate `mole` with router and retrieval prior."""
        pairs = zip(self.experts, SIMILARITIES, strict=True)
        experts = tuple(Expert(ref, similarity) for ref, similarity in pairs)
        return GenerationRequest(
            text_of(self.ids), experts=experts, router=ROUTER, max_new_tokens=self.new_tokens
        )

    def without(self) -> GenerationRequest:
        """The base model's answer."""
        return GenerationRequest(text_of(self.ids), max_new_tokens=self.new_tokens)


def ref_of(place: int) -> AdapterRef:
    """The adapter at `place` of a pool."""
    return AdapterRef(f"a{place}", 1)


def text_of(ids: Sequence[int]) -> str:
    """What the tokenizer of `model.tokenizer` reads as `ids`."""
    return " ".join(f"t{i}" for i in ids)


def prompts(
    triples: Sequence[Sequence[int]],
    shape: Shape,
    rng: random.Random,
    lengths: Sequence[int] | None = None,
) -> list[Prompt]:
    """A prompt of random ids for each triple of places; `lengths` of the answers, if they vary."""
    new_tokens = lengths or [NEW_TOKENS] * len(triples)
    return [
        Prompt(
            tuple(rng.choices(range(shape.vocabulary), k=PROMPT_TOKENS)),
            tuple(map(ref_of, triple)),
            length,
        )
        for triple, length in zip(triples, new_tokens, strict=True)
    ]


def family_triples(num: int, adapters: int, family: int, rng: random.Random) -> list[list[int]]:
    """Each prompt's own adapter, drawn from all, and two others of its family."""
    triples = []
    for _ in range(num):
        own = rng.randrange(adapters)
        first = own - own % family
        others = [place for place in range(first, first + family) if place != own]
        triples.append([own, *rng.sample(others, K - 1)])
    return triples


def covering_triples(num: int, family: int, rng: random.Random) -> list[list[int]]:
    """Every one of `num` adapters is one prompt's own; the others are of its family."""
    own = rng.sample(range(num), num)
    return [
        [place, *rng.sample([p for p in _family(place, family) if p != place], K - 1)]
        for place in own
    ]


def random_triples(num: int, adapters: int, rng: random.Random) -> list[list[int]]:
    """No family: any three adapters."""
    return [rng.sample(range(adapters), K) for _ in range(num)]


def pool_triples(num: int, pool: int, seed: int) -> list[list[int]]:
    """Blocks of a batch each, all of which use the ten adapters of one decade of the pool.

    Decades are drawn anew for every block; within them, pools of any size have the same triples,
    so that batches differ in nothing but in whose weights they need.
    """
    within, decades = random.Random(seed), random.Random(seed + 1)
    triples: list[list[int]] = []
    while len(triples) < num:
        base = DECADE * decades.randrange(pool // DECADE)
        own = [place % DECADE for place in range(BATCH)]
        within.shuffle(own)
        for place in own:
            others = [p for p in _siblings(place) if p != place]
            triples.append([base + p for p in (place, *within.sample(others, K - 1))])
    return triples[:num]


def zipf_lengths(num: int, rng: random.Random) -> list[int]:
    """Answers' lengths: 3 + r tokens with probability proportional to 1/r, from 4 to 128."""
    ranks = range(1, LONGEST - SHORTEST + 2)
    drawn = rng.choices(ranks, weights=[1 / r for r in ranks], k=num)
    return [SHORTEST - 1 + r for r in drawn]


def _family(place: int, size: int) -> range:
    first = place - place % size
    return range(first, first + size)


def _siblings(place: int) -> range:
    """The two families of a decade."""
    return range(6) if place < 6 else range(6, DECADE)
