"""Lines of waiting prompts for the scheduler's tests: nothing here is decoded."""

from dataclasses import dataclass

from hypothesis import strategies as st

from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.engine.scheduler import Scheduler
from ramole_core.engine.sequence import Sequence

from .tiny import REFS

MAX_TOKENS = 300
UNBOUNDED = 1 << 20


def sequence(
    length=10, max_new=5, places=(), router=None, at=0.0, number=0, priority=0, alone=False
):
    experts = tuple(Expert(REFS[p], 0.5) for p in places)
    request = GenerationRequest(
        str(number), experts=experts, gate="mole", router=router, priority=priority, alone=alone
    )
    return Sequence(request, [1] * length, max_new, None, at, request.mix())


def scheduler(batch_size=4, max_batch_tokens=UNBOUNDED, bank_size=8, interval=0.0, **options):
    return Scheduler(batch_size, max_batch_tokens, bank_size, interval, **options)


def filled(line, *arguments, **options):
    made = scheduler(*arguments, **options)
    for s in line:
        made.add(s)
    return made


def experts_of(sequences):
    return {ref for s in sequences for ref in s.adapters}


@dataclass
class Limits:
    batch_size: int
    max_batch_tokens: int
    bank_size: int
    window: int
    refill_share: float

    def scheduler(self):
        return Scheduler(
            self.batch_size,
            self.max_batch_tokens,
            self.bank_size,
            0.0,
            self.window,
            self.refill_share,
        )


LIMITS = st.builds(
    Limits,
    batch_size=st.integers(1, 10),
    max_batch_tokens=st.just(MAX_TOKENS),
    bank_size=st.integers(3, 8),
    window=st.integers(1, 20),
    refill_share=st.sampled_from([0.0, 0.5, 1.0]),
)
SEEDS = st.integers(0, 1 << 30)
