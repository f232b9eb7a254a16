"""Who enters the batch and when, within which limits, over random lines of prompts."""

import random
from concurrent.futures import wait

from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.engine.scheduler import REFILL_STEPS, rectangle

from .lines import LIMITS, SEEDS, experts_of, filled, scheduler, sequence
from .tiny import REFS

PROMPTS = st.builds(
    sequence,
    length=st.integers(1, 200),
    max_new=st.integers(1, 100),
    places=st.sets(st.integers(0, 7), max_size=3).map(tuple),
    router=st.sampled_from([None, "r1", "r2"]),
    at=st.integers(0, 3).map(float),
    priority=st.integers(-1, 1),
    alone=st.sampled_from([False, False, False, True]),
)


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
        assert len(running) == 1 or not any(s.request.alone for s in running)
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


def test_a_refill_waits_for_a_bounded_number_of_steps():
    tested = filled([sequence() for _ in range(20)], batch_size=8, refill_share=0.8)
    running = tested.admit(0.0, [])
    assert [len(tested.admit(0.0, running[:7])) for _ in range(REFILL_STEPS)] == [0] * REFILL_STEPS
    assert len(tested.admit(0.0, running[:7])) == 1
    assert tested.admit(0.0, running) == tested.admit(0.0, running[:7]) == []  # counted anew


def test_a_high_priority_waits_for_no_refill():
    tested = filled([sequence() for _ in range(20)], batch_size=8, refill_share=0.8)
    running = tested.admit(0.0, [])
    assert tested.admit(0.0, running[:7]) == []
    urgent = sequence(priority=1)
    tested.add(urgent)
    assert tested.admit(0.0, running[:7]) == [urgent]


def test_a_share_of_one_is_static_batches():
    tested = filled([sequence() for _ in range(20)], batch_size=8, refill_share=1.0)
    running = tested.admit(0.0, [])
    tested.add(sequence(priority=1))
    assert not any(tested.admit(0.0, running[:1]) for _ in range(2 * REFILL_STEPS))
    assert len(tested.admit(0.0, [])) == 8


# Alone


def test_one_that_wants_to_be_alone_enters_once_those_that_run_have_ended():
    line = [sequence(), sequence(), sequence(alone=True), sequence()]
    tested = filled(line[:2])
    running = tested.admit(0.0, [])
    for s in line[2:]:
        tested.add(s)
    assert tested.admit(0.0, running) == tested.admit(0.0, running[1:]) == []
    assert tested.admit(0.0, []) == [line[2]]
    assert tested.admit(0.0, [line[2]]) == []
    assert tested.admit(0.0, []) == [line[3]]
    assert len(tested) == 0


def test_between_two_that_want_to_be_alone_the_line_has_a_turn():
    lonely = [sequence(alone=True) for _ in range(4)]
    line = [sequence(), sequence(), sequence(priority=1)]
    tested = filled([*lonely, *line], batch_size=2)
    found = [tested.admit(0.0, []) for _ in range(6)]
    assert found == [
        [lonely[0]], [line[2], line[0]], [lonely[1]], [line[1]], [lonely[2]], [lonely[3]]
    ]  # fmt: skip


def test_cancelled_ones_that_wanted_to_be_alone_hold_up_nobody():
    lonely, late = [sequence(alone=True) for _ in range(2)], sequence()
    tested = filled([*lonely, late])
    assert all(s.future.cancel() for s in lonely)
    assert tested.admit(0.0, [sequence()]) == [late]
    assert not wait([s.future for s in lonely], timeout=0).not_done, "whoever waits is told"
    assert tested.wait_seconds(0.0) is None


def test_the_adapters_of_the_next_that_wants_to_be_alone_are_loaded_first():
    """Until they are ready the line goes on."""
    lonely, line = [sequence(alone=True, places=(p,)) for p in (0, 1)], [sequence(), sequence()]
    tested = filled([*line[:1], *lonely])
    assert tested.window() == [lonely[0], line[0]]
    assert tested.admit(0.0, [], lambda ref: False) == [line[0]]
    assert tested.admit(0.0, [], lambda ref: False) == []
    assert tested.wait_seconds(0.0) == 0.0, "due, and waiting for a load"
    tested.add(line[1])
    assert tested.admit(0.0, [], lambda ref: ref == REFS[0]) == [lonely[0]]
    assert tested.admit(0.0, [], lambda ref: True) == [line[1]]


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
    for _ in range(7):
        assert not tested.finished()
        assert tested.token_limit == 400
    assert tested.finished()
    assert tested.token_limit == 451
    for _ in range(47):
        tested.finished()
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
        tested.finished()
    tested.batch_size = 9
    for _ in range(3):
        tested.add(sequence(length=10, max_new=5))
    assert len(tested.admit(0.0, [])) == 2
