"""After a step broke: who runs again with whom, and what is left behind in the slots."""

import threading

import torch

from .test_failures import Saboteur, assert_clean
from .tiny import answers, ask, drain, spy_entering, spy_tokens, tiny_engine

REQUESTS = [ask(f"{n:02d}", n % 4, max_new_tokens=3 + n % 5) for n in range(20)]


def expected(requests=REQUESTS):
    return answers(tiny_engine(batch_size=1), requests)


def spy_running(engine):
    """The texts of the prompts of every step."""
    steps, step = [], engine.runner.step

    def record(running, cache):
        steps.append([s.request.prompt for s in running])
        return step(running, cache)

    engine.runner.step = record
    return steps


def test_out_of_memory_runs_the_halves_by_themselves_and_then_lets_others_in_again():
    """Prompts of different ages: those of the second step and those that came since."""
    engine, calls = tiny_engine(batch_size=8), []
    Saboteur(
        engine,
        "forward",
        torch.OutOfMemoryError(),
        lambda texts: calls.append(1) or len(calls) == 5,
    )
    steps, seen = spy_running(engine), spy_tokens(engine)
    assert answers(engine, REQUESTS) == expected()
    broken = steps[4]
    assert len(broken) == 8
    assert {*broken} != {*steps[0]}, "some came in later"
    halves = [{*broken[:4]}, {*broken[4:]}]
    parts = [next((i for i, h in enumerate(halves) if {*texts} <= h), 2) for texts in steps[5:]]
    assert parts == sorted(parts), "one half, the other, everybody"
    longest = [max(len(s.output_ids) for s in seen if s.request.prompt in h) for h in halves]
    assert [parts.count(i) for i in (0, 1)] == longest
    assert not any({*texts} & {*broken} for texts in steps[5 + sum(longest) :])
    assert max(map(len, steps[5 + sum(longest) :])) >= 4


def test_a_part_that_breaks_again_runs_in_smaller_parts_before_the_others():
    engine = tiny_engine(batch_size=8)
    Saboteur(engine, "forward", MemoryError(), lambda texts: len(texts) > 1 and "02" in texts)
    entered = spy_entering(engine)
    assert answers(engine, REQUESTS[:8]) == expected(REQUESTS[:8])
    [texts, *parts] = [[s.request.prompt for s in newcomers] for newcomers in entered]
    place = texts.index("02")
    wanted, begin, end = [], 0, 8
    while end - begin > 1:
        middle = (begin + end) // 2
        wanted.append((begin, middle) if place < middle else (middle, end))
        begin, end = wanted[-1]
    assert [texts[a:b] for a, b in wanted] == [part for part in parts if "02" in part]
    assert sorted(text for part in parts if "02" not in part for text in part) == sorted(
        text for text in texts if text != "02"
    ), "the others run once more, no more"


def test_the_cache_gets_smaller_until_the_device_has_room_for_it():
    """The device has room for keys and values of 100 tokens, the plan says 2048: a prompt that
    fits by itself is answered."""
    engine = tiny_engine()
    cache, forward = engine._slots.cache, engine.runner._forward

    def tight(rows):
        if cache.num_slots * cache.capacity > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(rows)

    engine.runner._forward = tight
    requests = [*REQUESTS, ask("long " * 10, 1, max_new_tokens=30)]
    assert answers(engine, requests) == expected(requests)
    [error] = answers(engine, [ask("long " * 20, 1, max_new_tokens=30)])
    assert error.code == "out_of_memory"
    assert "(130 tokens)" in str(error)
    assert_clean(engine)


def test_a_prompt_after_one_whose_numbers_overflowed_in_the_same_slot_is_not_spoiled():
    """What it left lies within the width at which its neighbour's keys make the others look."""
    engine = tiny_engine(batch_size=2)
    wide = ask("w" * 60, 1, max_new_tokens=40)
    bad = ask("b" * 50, 0, gate="weights", w0=1e38, max_new_tokens=4)
    late = [ask("late", 2, max_new_tokens=8), ask("x", max_new_tokens=8)]
    step, clear, used, left = engine.runner.step, engine._slots.cache.clear, {}, []

    def record(running, cache):
        used.update((s.request.prompt, s.slot) for s in running)
        return step(running, cache)

    def watch(slot, num_tokens):
        tensors = [t[slot] for t in engine._slots.cache._layers[1]]
        left.append(any(t.isnan().any() for t in tensors))
        clear(slot, num_tokens)

    engine.runner.step, engine._slots.cache.clear = record, watch
    futures = [engine.submit(request) for request in (wide, bad)]
    engine.step()
    assert futures[1].exception(0).code == "not_a_number"
    assert left == [True]
    assert answers(engine, late) == expected(late)
    assert [futures[0].result(0)] == expected([wide])
    assert used["late"] == used["x"] == used[bad.prompt]
    assert_clean(engine)


def test_a_broken_step_is_not_taken_for_the_beginning_of_the_next():
    """The same prompt runs again, alone as before, after an error in the midst of its answer."""
    engine, calls = tiny_engine(), []
    Saboteur(engine, "forward", ValueError(), lambda texts: calls.append(1) or len(calls) == 4)
    [request] = requests = [ask("abc", 1, max_new_tokens=9)]
    assert answers(engine, requests) == expected(requests)
    assert len(calls) == 4 + request.max_new_tokens


def test_a_prompt_that_cannot_begin_takes_nobody_with_it(monkeypatch):
    """What goes wrong between the line and the first forward ends no prompt's wait for ever."""
    engine = tiny_engine()
    requests = [ask("abc", 0), ask("abd", 1), ask("abe", 2)]
    seen = spy_tokens(engine)
    futures = [engine.submit(request) for request in requests]
    monkeypatch.setattr(seen[1], "restart", lambda: 1 / 0)
    drain(engine)
    assert all(future.done() for future in futures)
    assert [future.exception() is None for future in futures] == [True, False, True]


def test_prompts_go_through_in_smaller_chunks_after_running_out_of_memory():
    engine = tiny_engine()
    before = engine.runner.prefill_tokens
    step, broken = engine.runner.step, []

    def once(*arguments):
        if not broken:
            broken.append(True)
            raise torch.OutOfMemoryError
        return step(*arguments)

    engine.runner.step = once
    [answer] = answers(engine, [ask("abc", 0)])
    assert not isinstance(answer, Exception)
    assert engine.runner.prefill_tokens == before // 2


def test_chunks_grow_back_when_others_have_fitted():
    engine, calls = tiny_engine(batch_size=4), []
    before = engine.runner.prefill_tokens
    Saboteur(
        engine, "step", torch.OutOfMemoryError(), lambda texts: calls.append(1) or len(calls) < 3
    )
    answers(engine, REQUESTS[:4])
    low = engine.runner.prefill_tokens
    assert low < before // 2
    answers(engine, REQUESTS[:4])
    assert low < engine.runner.prefill_tokens < before
    for _ in range(15):
        answers(engine, REQUESTS[:4])
    assert engine.runner.prefill_tokens == before


def test_a_retry_of_one_that_wants_to_be_alone_is_quiet_too():
    quiet, calls = threading.Lock(), []
    engine = tiny_engine(watchers={"quiet": quiet})
    Saboteur(
        engine,
        "step",
        RuntimeError("once"),
        lambda texts: calls.append(quiet.locked()) or len(calls) == 1,
    )
    [answer] = answers(engine, [ask("abc", 1, max_new_tokens=2, alone=True)])
    assert answer.completion_tokens == 2
    assert calls == [True, True, True]
    assert not quiet.locked()


def test_who_is_ended_before_the_retry_does_not_run_again():
    engine, calls = tiny_engine(), []
    saboteur = Saboteur(
        engine, "step", RuntimeError("once"), lambda texts: calls.append(1) or len(calls) == 1
    )
    futures = [engine.submit(request) for request in REQUESTS[:4]]
    engine.step()
    for future in futures[1:]:
        future.end()
    drain(engine)
    assert [future.exception(0).code for future in futures[1:]] == ["cancelled"] * 3
    assert [futures[0].result(0)] == expected(REQUESTS[:1])
    assert saboteur.sizes == [4] + [1] * futures[0].result(0).completion_tokens
    assert_clean(engine)


def spoilt_after(spoil):
    """What two prompts answer when `spoil` was done before: the first in the slot that it left,
    the second longer, so that all of that slot is looked at."""
    engine = tiny_engine()
    engine.runner.prefill_tokens = 64
    spoil(engine)
    late = engine.submit(ask("abc", 1, max_new_tokens=10))
    engine.step()
    assert engine._running[0].slot == 0
    long = engine.submit(ask("n" * 60, max_new_tokens=20))
    drain(engine)
    return [late.exception(0) or late.result(0).text, long.exception(0) or long.result(0).text]


def test_a_prompt_ended_in_the_midst_of_its_prefill_spoils_nothing():
    """Its numbers have overflowed in the first chunk; nobody has seen logits yet."""

    def spoil(engine):
        bad = engine.submit(ask("x" * 150, 0, gate="weights", w0=1e39, max_new_tokens=4))
        engine.step()
        assert any(t.isnan().any() for t in engine._slots.cache._layers[1])
        bad.end()
        engine.step()

    assert spoilt_after(spoil) == spoilt_after(lambda engine: None)


def test_keys_that_overflowed_where_nobody_looked_spoil_nothing():
    """In float16 an adapter may give one token keys of -inf, which get no weight: the answer is
    sound."""

    def spoil(engine):
        step = engine.runner.step

        @torch.inference_mode()
        def overflow(running, cache):
            tokens = step(running, cache)
            for keys, _ in cache._layers.values():
                keys[running[0].slot, :, 7:9] = -torch.inf
            return tokens

        engine.runner.step = overflow
        [answer] = answers(engine, [ask("x" * 20, max_new_tokens=1)])
        assert answer.completion_tokens == 1
        engine.runner.step = step

    assert spoilt_after(spoil) == spoilt_after(lambda engine: None)
