"""The scheduler's promises, over random lines of prompts."""

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.engine.scheduler import Scheduler, padded_tokens
from ramole_core.engine.sequence import Sequence

from .tiny import REFS

MAX_TOKENS = 300


def sequence(length=10, max_new=5, places=(), router=None, at=0.0, number=0):
    experts = tuple(Expert(REFS[p], 0.5) for p in places)
    request = GenerationRequest(str(number), experts=experts, gate="mole", router=router)
    return Sequence(request, [1] * length, max_new, None, at, request.mix())


@dataclass
class Limits:
    batch_size: int
    max_batch_tokens: int
    bank_size: int


LINES = st.lists(
    st.builds(
        sequence,
        length=st.integers(1, 200),
        max_new=st.integers(1, 100),
        places=st.sets(st.integers(0, 7), max_size=3).map(tuple),
        router=st.sampled_from([None, "r1", "r2"]),
    ),
    max_size=40,
)
LIMITS = st.builds(
    Limits,
    batch_size=st.integers(1, 10),
    max_batch_tokens=st.just(MAX_TOKENS),
    bank_size=st.integers(3, 8),
)


def new_scheduler(limits, interval=0.0):
    return Scheduler(limits.batch_size, limits.max_batch_tokens, limits.bank_size, interval)


@settings(deadline=None)
@given(LINES, LIMITS)
def test_batches_keep_every_limit_hold_the_oldest_and_take_each_prompt_once(line, limits):
    scheduler = new_scheduler(limits)
    for s in line:
        scheduler.add(s)
    waiting = list(line)
    while batch := scheduler.next_batch(0.0):
        assert waiting[0] in batch, "the oldest prompt is always in the next batch"
        assert len(batch) <= limits.batch_size
        assert padded_tokens(batch) <= limits.max_batch_tokens
        assert len({ref for s in batch for ref in s.adapters}) <= limits.bank_size
        assert len({s.router for s in batch if s.router}) <= 1
        assert len(set(map(id, batch))) == len(batch)
        for s in batch:
            waiting.remove(s)
    assert waiting == []
    assert len(scheduler) == 0


@settings(deadline=None)
@given(LINES, LIMITS, st.integers(0, 1 << 30))
def test_a_stream_of_better_fitting_prompts_starves_nobody(line, limits, seed):
    """The odd one out (long, other adapters) is served after at most the prompts before it."""
    rng = random.Random(seed)
    scheduler = new_scheduler(limits)
    for s in line:
        scheduler.add(s)
    odd = sequence(length=190, max_new=100, places=(7,), router="r2")
    scheduler.add(odd)
    for _ in range(len(line) + 1):
        for _ in range(limits.batch_size):
            scheduler.add(sequence(length=rng.randint(8, 12), places=(1,)))
        if odd in scheduler.next_batch(0.0):
            return
    raise AssertionError("starved")


def test_prompts_of_similar_length_run_together():
    scheduler = Scheduler(4, 1 << 20, 8, 0.0)
    lengths = [10, 500, 11, 480, 9, 510, 12, 490]
    for length in lengths:
        scheduler.add(sequence(length=length))
    batches = [sorted(len(s.prompt_ids) for s in scheduler.next_batch(0.0)) for _ in range(2)]
    assert batches == [[9, 10, 11, 12], [480, 490, 500, 510]]


def test_among_similar_lengths_shared_adapters_run_together():
    scheduler = Scheduler(3, 1 << 20, 8, 0.0)
    for places in [(0, 1), (2, 3), (0, 1), (4, 5), (1, 0), (2, 3), (2, 3)]:
        scheduler.add(sequence(places=places))
    batches = [{ref for s in scheduler.next_batch(0.0) for ref in s.adapters} for _ in range(2)]
    assert batches == [{REFS[0], REFS[1]}, {REFS[2], REFS[3]}]


def test_a_batch_waits_for_size_or_interval():
    scheduler = Scheduler(3, 1 << 20, 8, 2.0)
    assert scheduler.wait_seconds(0.0) is None
    scheduler.add(sequence(at=10.0))
    scheduler.add(sequence(at=11.0))
    assert scheduler.next_batch(11.5) == []
    assert scheduler.wait_seconds(11.5) == 0.5
    assert len(scheduler.next_batch(12.0)) == 2
    for _ in range(3):
        scheduler.add(sequence(at=12.0))
    assert scheduler.wait_seconds(12.0) == 0.0
    assert len(scheduler.next_batch(12.0)) == 3


def test_the_line_is_in_the_order_of_arrival():
    scheduler = Scheduler(1, 1 << 20, 8, 0.0)
    line = [sequence(at=at) for at in (2.0, 3.0, 1.0, 2.0, 3.0, 1.0)]
    for s in line:
        scheduler.add(s)
    assert [scheduler.next_batch(9.0) for _ in line] == [[line[i]] for i in (2, 5, 0, 3, 1, 4)]


def test_cancelled_prompts_leave_the_line():
    scheduler = Scheduler(3, 1 << 20, 8, 0.0)
    line = [sequence(number=i) for i in range(4)]
    for s in line:
        scheduler.add(s)
    line[0].future.cancel()
    line[2].future.cancel()
    assert scheduler.next_batch(0.0) == [line[1], line[3]]


def test_out_of_memory_shrinks_batches_until_others_fitted():
    scheduler = Scheduler(8, 1 << 20, 8, 0.0)

    def next_size():
        for _ in range(8):
            scheduler.add(sequence(length=95, max_new=5))
        batch = scheduler.next_batch(0.0)
        scheduler.drain()
        return len(batch), batch

    size, batch = next_size()
    assert size == 8
    scheduler.ran_out_of_memory(batch)
    assert next_size()[0] == 4
    for _ in range(6):
        scheduler.finished_batch()
    assert next_size()[0] == 8


def test_prompts_without_a_router_ride_along_with_one_version_only():
    scheduler = Scheduler(8, 1 << 20, 8, 0.0)
    for router in (None, "r1", "r2", None, "r1", "r2"):
        scheduler.add(sequence(places=(0,), router=router))
    batches = [[s.router for s in scheduler.next_batch(0.0)] for _ in range(3)]
    assert batches == [[None, "r1", None, "r1"], ["r2", "r2"], []]
