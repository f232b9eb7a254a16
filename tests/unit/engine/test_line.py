"""The order of the line: nobody waits for ever, and whose turn it is."""

import random
from bisect import bisect
from concurrent.futures import wait
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.engine.line import OUTRANKED_PER_TURN
from ramole_core.engine.scheduler import MAX_OVERTAKEN_WINDOWS

from .lines import LIMITS, SEEDS, filled, scheduler, sequence
from .tiny import REFS

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
