"""The scheduler's promises, over random lines of prompts and random ends of answers."""

import random
from bisect import bisect
from concurrent.futures import wait
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.engine.line import OUTRANKED_PER_TURN
from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.engine.scheduler import MAX_OVERTAKEN_WINDOWS, Scheduler, rectangle
from ramole_core.engine.sequence import Sequence

from .tiny import REFS

MAX_TOKENS = 300
UNBOUNDED = 1 << 20


def sequence(length=10, max_new=5, places=(), router=None, at=0.0, number=0, priority=0):
    experts = tuple(Expert(REFS[p], 0.5) for p in places)
    request = GenerationRequest(
        str(number), experts=experts, gate="mole", router=router, priority=priority
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


PROMPTS = st.builds(
    sequence,
    length=st.integers(1, 200),
    max_new=st.integers(1, 100),
    places=st.sets(st.integers(0, 7), max_size=3).map(tuple),
    router=st.sampled_from([None, "r1", "r2"]),
    at=st.integers(0, 3).map(float),
    priority=st.integers(-1, 1),
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


# Limits


@settings(deadline=None)
@given(st.lists(PROMPTS, max_size=40), LIMITS, SEEDS)
def test_whatever_ends_when_every_limit_is_kept_and_each_prompt_enters_once(line, limits, seed):
    rng = random.Random(seed)
    tested = limits.scheduler()
    for s in line:
        tested.add(s)
    running, entered = [], []
    while tested or running:
        before = len(running)
        chosen = tested.admit(9.0, running)
        assert before or chosen, "nothing runs, so the first fits"
        entered += chosen
        running += chosen
        assert len(running) <= limits.batch_size
        assert len(running) == 1 or rectangle(running) <= limits.max_batch_tokens
        assert len(experts_of(running)) <= limits.bank_size
        running = rng.sample(running, rng.randrange(len(running)))  # at least one answer ends
    assert sorted(map(id, entered)) == sorted(map(id, line))


def test_a_full_batch_lets_nobody_in():
    line = [sequence() for _ in range(6)]
    tested = filled(line, batch_size=4)
    running = tested.admit(0.0, [])
    assert running == line[:4]
    assert tested.admit(0.0, running) == []
    assert tested.admit(0.0, running[1:]) == [line[4]]


def test_the_rectangle_counts_those_that_run():
    running = [sequence(length=95, max_new=5)]
    tested = filled([sequence(length=10), sequence(length=30, max_new=120)], max_batch_tokens=299)
    assert [s.num_tokens for s in tested.admit(0.0, running)] == [15]
    assert len(tested) == 1, "2 rows of 150 tokens are too many"


def test_different_router_versions_run_together():
    line = [sequence(places=(0,), router=router) for router in (None, "r1", "r2", None, "r1")]
    assert len(filled(line, batch_size=8).admit(0.0, [])) == 5


# Who


def test_prompts_of_similar_length_run_together():
    lengths = [10, 500, 11, 480, 9, 510, 12, 490]
    tested = filled([sequence(length=length) for length in lengths], batch_size=4)
    batches = [sorted(len(s.prompt_ids) for s in tested.admit(0.0, [])) for _ in range(2)]
    assert batches == [[9, 10, 11, 12], [480, 490, 500, 510]]


def test_prompts_that_share_experts_run_together_whatever_their_lengths():
    places = [(0, 1), (2, 3), (0, 1), (4, 5), (1, 0), (2, 3), (2, 3)]
    lengths = [10, 10, 99, 10, 10, 10, 10]
    line = [sequence(length=n, places=p) for n, p in zip(lengths, places, strict=True)]
    tested = filled(line, batch_size=3)
    batches = [experts_of(tested.admit(0.0, [])) for _ in range(2)]
    assert batches == [{REFS[0], REFS[1]}, {REFS[2], REFS[3]}]


def test_newcomers_need_few_experts_beside_the_active_ones():
    running = [sequence(places=(4, 5, 6))]
    line = [sequence(places=p) for p in ((0, 1, 2), (4, 0, 1), (5, 6, 7), (6, 4))]
    assert filled(line, batch_size=3).admit(0.0, running) == [line[3], line[2]]


def test_of_equals_the_oldest_enter():
    line = [sequence(at=float(10 - number), number=number) for number in range(6)]
    assert filled(line, batch_size=4).admit(99.0, []) == line[:1:-1]


def test_only_the_window_is_looked_at():
    line = [sequence(places=(place,)) for place in (0, 1, 2, 0, 0)]
    tested = filled(line, batch_size=2, window=3)
    assert tested.window() == line[:3]
    assert tested.admit(0.0, []) == line[:2]
    assert tested.window() == line[2:]


# When


def test_a_batch_waits_for_size_or_interval():
    tested = scheduler(batch_size=3, interval=2.0)
    assert tested.wait_seconds(0.0) is None
    tested.add(sequence(at=10.0))
    tested.add(sequence(at=11.0, priority=1))
    assert tested.admit(11.5, []) == []
    assert tested.wait_seconds(11.5) == 0.5
    assert len(tested.admit(12.0, [])) == 2
    for _ in range(3):
        tested.add(sequence(at=12.0))
    assert tested.wait_seconds(12.0) == 0.0
    assert len(tested.admit(12.0, [])) == 3


def test_beside_others_newcomers_enter_without_an_interval():
    tested = filled([sequence(at=10.0)], interval=2.0)
    assert tested.admit(10.0, []) == []
    assert len(tested.admit(10.0, [sequence()])) == 1


def test_a_refill_waits_for_its_share_of_the_slots():
    tested = filled([sequence() for _ in range(20)], batch_size=8, refill_share=0.4)
    running = tested.admit(0.0, [])
    assert len(running) == 8
    assert tested.admit(0.0, running[:6]) == []
    assert tested.admit(0.0, running[:5]) == []
    assert len(tested.admit(0.0, running[:4])) == 4


def test_a_refill_waits_for_no_more_slots_than_prompts_wait():
    tested = filled([sequence() for _ in range(9)], batch_size=8, refill_share=1.0)
    running = tested.admit(0.0, [])
    assert len(tested.admit(0.0, running[1:])) == 1


def test_without_running_prompts_the_refill_share_is_ignored():
    tested = filled([sequence()], batch_size=8, refill_share=1.0)
    assert len(tested.admit(0.0, [])) == 1


# Age


def overtakers(entered, line):
    """For each prompt: how many of those behind it entered in an earlier moment. `entered`: lists,
    one for each moment."""
    places = {id(s): number for number, s in enumerate(line)}
    earlier = []
    for together in entered:
        now = [places[id(s)] for s in together]
        yield from (len(earlier) - bisect(earlier, place) for place in now)
        earlier = sorted(earlier + now)


@settings(deadline=None, max_examples=30)
@given(LIMITS, st.integers(1, 6), SEEDS)
def test_no_stream_lets_more_than_the_bound_overtake(limits, window, seed):
    """Popular short prompts keep coming; among them stand some that fit badly."""
    rng = random.Random(seed)
    tested = replace(limits, window=window).scheduler()
    line, running, entered = [], [], []
    for moment in range(40):
        for _ in range(4):
            odd = rng.random() < 0.1
            length, places = (rng.randint(50, 200), (5, 6, 7)) if odd else (10, (rng.randrange(3),))
            line.append(sequence(length=length, places=places, at=float(moment)))
            tested.add(line[-1])
        entered.append(tested.admit(float(moment), running))
        running += entered[-1]
        running = rng.sample(running, rng.randrange(len(running)))
    while tested:
        entered.append(tested.admit(999.0, []))
    assert max(overtakers(entered, line)) <= MAX_OVERTAKEN_WINDOWS * window


def test_what_is_overdue_and_does_not_fit_keeps_others_out_until_it_does():
    tested = scheduler(batch_size=2, max_batch_tokens=200, window=4)
    large = sequence(length=140)
    tested.add(large)
    running = [sequence()]
    for number in range(1, 9):
        tested.add(sequence(number=number))
        newcomers = tested.admit(0.0, running)
        if not newcomers:
            break
        assert large not in newcomers
        running = newcomers
    else:
        raise AssertionError("others overtake for ever")
    assert tested.window()[0] is large
    assert tested.admit(0.0, []) == [large]


def test_older_prompts_that_enter_do_not_make_a_prompt_overdue():
    odd = sequence(places=(7,), at=1.0)
    tested = filled([odd], batch_size=2, window=4)
    for _ in range(6):
        tested.add(sequence(at=0.0))
        tested.add(sequence(at=2.0))
        assert odd not in tested.admit(2.0, [])
    tested.add(sequence(at=2.0))
    tested.admit(2.0, [sequence()])
    tested.add(sequence(at=0.0))
    assert tested.window()[0] is odd, "now 7 later ones have entered, and 2 more might at once"


def test_the_oldest_overdue_prompt_enters_first():
    low, normal = sequence(at=0.0, priority=-1, places=(6,)), sequence(at=1.0, places=(7,))
    tested = filled([low, normal], batch_size=1, window=2)
    moments = {}
    for moment in range(2 * OUTRANKED_PER_TURN):
        tested.add(sequence(at=2.0))
        tested.admit(2.0, [], {REFS[0]}.__contains__)
        first = tested.window()[0]
        moments.setdefault(id(first), moment)
    assert moments[id(normal)] < moments[id(low)], "it was overdue before"
    assert tested.admit(2.0, []) == [low]
    assert tested.admit(2.0, []) == [normal]


def test_a_second_pass_is_as_old_as_its_prompt():
    line = [sequence(at=at) for at in (2.0, 3.0, 1.0, 2.0, 3.0, 1.0)]
    tested = filled(line, batch_size=1)
    assert [tested.admit(9.0, []) for _ in line] == [[line[i]] for i in (2, 5, 0, 3, 1, 4)]


# Adapters that are not ready


def test_prompts_whose_adapters_are_not_ready_are_passed_over():
    line = [sequence(places=p) for p in ((0, 1), (2,), (1,), ())]
    tested = filled(line)
    loaded = {REFS[1], REFS[2]}
    assert tested.admit(0.0, [], loaded.__contains__) == [line[3], line[1], line[2]]
    assert tested.window() == [line[0]]
    assert tested.admit(0.0, [], loaded.__contains__) == []
    assert tested.wait_seconds(0.0) == 0.0
    assert tested.admit(0.0, [], (loaded | {REFS[0]}).__contains__) == [line[0]]


def test_room_in_the_bank_is_kept_for_an_overdue_prompt_that_loads():
    """Those that share active experts go on meanwhile; those that would take its room wait."""
    tested = scheduler(batch_size=4, bank_size=5, window=8)
    late, next_late = sequence(places=(5, 6, 7)), sequence(places=(3, 4, 5))
    greedy = sequence(places=(1, 2))
    tested.add(late)
    tested.add(next_late)
    loaded = set(REFS[:3])

    def admit_beside_expert_0():
        for _ in range(3):
            tested.add(sequence(places=(0,)))
        return tested.admit(0.0, [sequence(places=(0,))], loaded.__contains__)

    for _ in range(2 * MAX_OVERTAKEN_WINDOWS):
        assert len(admit_beside_expert_0()) == 3
    tested.add(greedy)
    for _ in range(2):
        assert len(admit_beside_expert_0()) == 3
    assert tested.window() == [late, next_late, greedy]
    assert tested.admit(0.0, [sequence(places=(0,))], loaded.__contains__) == []
    loaded.update(REFS)
    assert tested.admit(0.0, [sequence(places=(0,))], loaded.__contains__) == [late]


def test_an_overdue_prompt_that_loads_may_leave_no_room_at_all():
    tested = scheduler(batch_size=2, bank_size=3, window=2)
    late = sequence(places=(5, 6, 7))
    tested.add(late)
    loaded = set(REFS[:5])
    for _ in range(2 * MAX_OVERTAKEN_WINDOWS):
        tested.add(sequence(places=(0,)))
        tested.admit(0.0, [sequence(places=(0,))], loaded.__contains__)
    assert tested.admit(0.0, [sequence(places=(0,))], loaded.__contains__) == []
    assert tested.admit(0.0, [], loaded.__contains__) == []
    assert tested.admit(0.0, [], set(REFS).__contains__) == [late]


# Priorities


def test_higher_priorities_enter_first():
    line = [sequence(priority=p, places=(p % 2,), number=n) for n, p in enumerate([0, -1, 1, 0, 1])]
    tested = filled(line, batch_size=2)
    assert tested.admit(0.0, []) == [line[2], line[4]]
    assert tested.admit(0.0, []) == [line[0], line[3]]
    assert tested.admit(0.0, []) == [line[1]]


def test_a_higher_priority_outweighs_shared_experts_and_lengths():
    line = [sequence(places=(0,)), sequence(length=90, places=(1, 2, 3), priority=1)]
    tested = filled(line, batch_size=2)
    assert tested.admit(0.0, [sequence(places=(0,))]) == [line[1]]


def test_a_lower_priority_enters_where_no_higher_one_fits():
    line = [sequence(), sequence(length=190, priority=1)]
    tested = filled(line, max_batch_tokens=300)
    assert tested.admit(0.0, [sequence()]) == [line[0]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 5))
def test_an_endless_stream_of_high_priority_lets_a_low_one_in_now_and_then(batch_size, num_low):
    low = [sequence(priority=-1) for _ in range(num_low)]
    tested = filled(low, batch_size=batch_size)
    high_before = []  # so many entered in earlier moments, for each of the low ones
    num_high = 0
    while len(high_before) < num_low:
        for _ in range(batch_size):
            tested.add(sequence(priority=1, at=1.0))
        chosen = tested.admit(1.0, [])
        high_before += [num_high for s in chosen if s.priority < 0]
        num_high += sum(s.priority > 0 for s in chosen)
        assert num_high <= (num_low + 2) * OUTRANKED_PER_TURN, "they starve"
    for number, num_before in enumerate(high_before, start=1):
        assert 0 <= num_before - number * OUTRANKED_PER_TURN < batch_size


def test_the_turn_is_the_oldest_ones_whatever_its_priority():
    normal, low = sequence(at=0.0), sequence(at=1.0, priority=-1)
    tested = filled([normal, low], batch_size=1)
    entered = []
    for _ in range(3 * OUTRANKED_PER_TURN):
        tested.add(sequence(at=2.0, priority=1))
        entered += tested.admit(2.0, [])
    assert [s for s in entered if s.priority < 1] == [normal, low]


def test_older_prompts_of_higher_priority_give_no_turn_to_lower_ones():
    older = [sequence(priority=1, at=0.0) for _ in range(2 * OUTRANKED_PER_TURN)]
    low = sequence(at=1.0)
    tested = filled([*older, low], batch_size=4)
    while len(tested) > 1:
        assert low not in tested.admit(1.0, [])
    assert tested.admit(1.0, []) == [low]


# Leaving the line


def test_cancelled_prompts_leave_the_line():
    line = [sequence(number=i) for i in range(4)]
    tested = filled(line, batch_size=3)
    line[0].future.cancel()
    line[2].future.cancel()
    assert tested.admit(0.0, []) == [line[1], line[3]]


def test_whoever_waits_for_a_cancelled_prompt_is_told_however_far_back_it_stands():
    line = [sequence(number=i) for i in range(4)]
    tested = filled(line, window=2)
    line[3].future.cancel()
    assert tested.window() == line[:2]
    assert wait([line[3].future], timeout=0).done
    assert len(tested) == 3


def test_draining_takes_all():
    line = [sequence(number=i, priority=-i) for i in range(4)]
    tested = filled(line)
    assert tested.drain() == line
    assert len(tested) == 0 and tested.wait_seconds(0.0) is None


# Memory


def test_out_of_memory_halves_the_rectangle_until_others_fitted():
    tested = scheduler(batch_size=8)

    def next_batch():
        for _ in range(8):
            tested.add(sequence(length=95, max_new=5))
        batch = tested.admit(0.0, [])
        tested.drain()
        return batch

    batch = next_batch()
    assert len(batch) == 8
    tested.ran_out_of_memory(batch)
    assert len(next_batch()) == 4
    for s in batch[:7]:
        tested.finished(s)
        assert tested.token_limit == 400
    for s in batch:
        tested.finished(s)
        assert tested.token_limit == 451
    for s in 5 * batch:
        tested.finished(s)
    assert len(next_batch()) == 8


def test_a_prompt_larger_than_what_is_left_runs_alone():
    line = [sequence(length=95, max_new=5) for _ in range(2)]
    tested = filled(line)
    tested.ran_out_of_memory([sequence(length=45, max_new=5)])
    assert tested.admit(0.0, []) == line[:1]
    assert tested.admit(0.0, line[:1]) == []


def test_the_limit_recovers_to_what_was_set_and_no_further():
    tested = scheduler(batch_size=1, max_batch_tokens=30)
    tested.ran_out_of_memory([sequence(), sequence()])
    for _ in range(50):
        tested.finished(sequence())
    tested.batch_size = 9
    for _ in range(3):
        tested.add(sequence(length=10, max_new=5))
    assert len(tested.admit(0.0, [])) == 2
