"""The cache's rectangle: who sits where, what moves, and that nothing is lost on the way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.engine.slots import SlotCache, Slots

from .tiny import ask, spy_tokens, tiny_engine


class Prompt:
    """As much of a sequence as slots look at."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = self.num_cached = num_tokens
        self.slot = -1


def write(cache, prompt, value):
    """Fills the prompt's slot, as far as its tokens reach."""
    positions = torch.arange(prompt.num_tokens)
    slots = torch.full_like(positions, prompt.slot)
    tokens = torch.full((prompt.num_tokens, 2, 3), float(value))
    for layer in (0, 1):
        cache.write(layer, cache.cells(slots, positions, 2), tokens + layer, -tokens)


def reads_back(cache, prompt, value):
    for layer in (0, 1):
        keys, values = cache._layers[layer]
        own = keys[prompt.slot, :, : prompt.num_tokens]
        assert (own == value + layer).all()
        assert (values[prompt.slot, :, : prompt.num_tokens] == -value).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5)), min_size=1, max_size=30))
def test_every_prompt_keeps_what_was_written_within_the_limits(arrivals):
    """Prompts come, some leave; each has a slot of its own that is long enough."""
    slots, here = Slots(max_slots=4, max_tokens=1200), []
    for number, (num_tokens, leaves) in enumerate(arrivals, start=1):
        newcomer = Prompt(num_tokens)
        longest = max(p.num_tokens for p in [newcomer, *(p for p, _ in here)])
        if len(here) < 4 and (len(here) + 1) * longest <= 1200:
            slots.enter([newcomer])
            write(slots.cache, newcomer, number)
            here.append((newcomer, number))
        assert slots.cache.num_slots * slots.cache.capacity <= 1200
        assert len({p.slot for p, _ in here}) == len(here)
        for prompt, value in here:
            reads_back(slots.cache, prompt, value)
        if leaves < len(here):
            prompt, _ = here.pop(leaves)
            slots.leave(prompt)
            assert prompt.slot == -1


def test_the_lowest_free_slots_are_taken_and_told_when_all_are_numbered_anew():
    slots, prompts = Slots(8, 8 * 64), [Prompt(10) for _ in range(4)]
    assert slots.enter(prompts)  # the first rectangle
    assert [p.slot for p in prompts] == [0, 1, 2, 3]
    slots.leave(prompts[1])
    late = Prompt(64)
    assert not slots.enter([late])
    assert late.slot == 1
    slots.leave(prompts[0])
    assert slots.enter([Prompt(65)])  # too long for a slot: those that stay move together
    assert sorted(p.slot for p in (late, *prompts[2:])) == [0, 1, 2]


@pytest.mark.parametrize("value", [1.0, math.inf, math.nan])
def test_what_a_prompt_wrote_never_stays_behind_for_the_next_one(value):
    slots, prompt = Slots(2, 64), Prompt(8)
    slots.enter([prompt])
    write(slots.cache, prompt, value)
    slots.leave(prompt)
    assert not any(tensor.any() for pair in slots.cache._layers.values() for tensor in pair)


def test_a_layer_may_have_keys_and_values_of_different_width():
    cache = SlotCache()
    cache.reshape(2, 4, [])
    one = torch.tensor([1])
    cells = cache.cells(one, one, 2)
    keys, values = cache.write(3, cells, torch.ones(1, 2, 5), torch.ones(1, 2, 7))
    assert (keys.shape, values.shape) == ((2, 2, 4, 5), (2, 2, 4, 7))
    assert cache.num_bytes == 4 * (2 * 2 * 4 * 5 + 2 * 2 * 4 * 7)
    cache.release()
    assert cache.num_bytes == 0


def test_the_engine_gives_memory_for_a_long_prompt_and_short_ones_go_on():
    """The rectangle grows while others decode; their tokens do not change."""
    short = [ask("abc", 0, max_new_tokens=30), ask("xyz", 1, max_new_tokens=30)]
    alone = [_tokens([request]) for request in short]
    engine = tiny_engine(max_batch_tokens=1024)
    seen = spy_tokens(engine)
    futures = [engine.submit(request) for request in short]
    for _ in range(5):
        engine.step()
    before = engine._slots.cache.capacity
    futures.append(engine.submit(ask("long " * 30, 2, max_new_tokens=5)))
    while engine.step():
        pass
    assert all(future.exception() is None for future in futures)
    assert engine._slots.cache.capacity > before
    assert [list(s.output_ids) for s in seen[:2]] == [tokens for (tokens,) in alone]


def _tokens(requests):
    engine = tiny_engine()
    seen = spy_tokens(engine)
    for request in requests:
        engine.submit(request)
    while engine.step():
        pass
    return [list(sequence.output_ids) for sequence in seen]
