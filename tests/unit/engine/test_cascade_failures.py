"""A cascade that is cut short: cancelled, an expert that fails, an outage, an engine that ends."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from ramole_core.engine import cascade
from ramole_core.engine.sequence import Sequence
from ramole_core.errors import PromptError, StoreUnavailableError, UnavailableError

from .test_cascade import ALWAYS, HALF, alone, assert_same, cascades, one, replace, ruled
from .test_failures import Saboteur, assert_clean
from .tiny import REFS, answers, ask, drain, spy_entering

REQUEST = ask("hello", 0, 1, 2, gate="cascade", max_new_tokens=4)
NEIGHBOUR = ask("world", 3, max_new_tokens=9)


def until_second_pass(engine):
    """Steps until a second pass waits."""
    while not any(s.is_second_pass for s in engine._scheduler.window()):
        assert engine.step()


def sizes(entered):
    return [len(newcomers) for newcomers in entered]


def assert_over(engine, *futures):
    """Whoever waits for them is told; nothing is left behind and the engine still answers."""
    assert not wait(futures, timeout=0).not_done
    drain(engine)
    assert len(engine._scheduler) == 0
    assert_clean(engine)


def test_a_cascade_cancelled_before_it_runs_is_never_run():
    engine = ruled(ALWAYS, batch_size=1)
    neighbour, future = engine.submit(NEIGHBOUR), engine.submit(REQUEST)
    engine.step()
    assert future.cancel()
    drain(engine)
    assert neighbour.result(0) == replace(one(NEIGHBOUR), confidence=None)
    assert engine.num_steps == neighbour.result(0).completion_tokens
    assert_over(engine, future, neighbour)


def test_a_cascade_cancelled_during_its_first_pass_has_no_second():
    engine = ruled(ALWAYS)
    entered = spy_entering(engine)
    future, neighbour = engine.submit(REQUEST), engine.submit(NEIGHBOUR)
    engine.step()
    assert future.cancel()
    assert future.cancel(), "twice does no harm"
    assert not wait([future], timeout=0).not_done
    drain(engine)
    assert sizes(entered) == [2]
    assert neighbour.result(0).completion_tokens == 9
    assert_over(engine, future, neighbour)


def test_a_cascade_cancelled_before_its_second_pass_leaves_the_line():
    engine = ruled(ALWAYS)
    entered = spy_entering(engine)
    future = engine.submit(REQUEST)
    until_second_pass(engine)
    assert future.cancel()
    drain(engine)
    assert sizes(entered) == [1]
    assert_over(engine, future)


def test_a_cascade_cancelled_while_its_second_pass_is_made_has_none(monkeypatch):
    make, engine = Sequence.alone, ruled(ALWAYS)
    monkeypatch.setattr(Sequence, "alone", lambda *args: future.cancel() and make(*args))
    entered = spy_entering(engine)
    future = engine.submit(REQUEST)
    drain(engine)
    assert sizes(entered) == [1]
    assert_over(engine, future)


def test_a_cascade_cancelled_during_its_second_pass_drops_what_waits():
    engine = ruled(ALWAYS, batch_size=1)
    entered = spy_entering(engine)
    future = engine.submit(REQUEST)
    until_second_pass(engine)
    engine.step()
    assert future.cancel()
    drain(engine)
    assert sizes(entered) == [1, 1]
    assert_over(engine, future)


def test_an_answer_cannot_be_cancelled():
    engine = ruled(ALWAYS)
    future = engine.submit(REQUEST)
    drain(engine)
    assert not future.cancel()
    assert future.result(0).extra_passes == 3


def lose(engine, *places):
    """The adapters' files are gone, and so are their copies on the device."""
    for place in places:
        del engine.bank.source.adapters[REFS[place]]
    engine.bank.free_unused()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_expert_that_fails_leaves_the_choice_to_the_others(place):
    engine = ruled(ALWAYS)
    future, neighbour = engine.submit(REQUEST), engine.submit(NEIGHBOUR)
    until_second_pass(engine)
    kept = [i for i in range(3) if i != place]
    lose(engine, place)
    drain(engine)
    answer = future.result(0)
    others = [alone(REQUEST)[i] for i in kept]
    assert answer.weights[place] == 0
    assert answer.text == others[kept.index(answer.weights.index(1))].text
    assert answer.extra_passes == 2
    first = one(replace(REQUEST, gate="mole"))
    everything = first.completion_tokens + sum(o.completion_tokens for o in others)
    assert answer.extra_tokens == everything - answer.completion_tokens
    assert neighbour.result(0).completion_tokens == 9


def test_when_every_expert_fails_the_first_pass_is_the_answer():
    engine = ruled(ALWAYS)
    future = engine.submit(REQUEST)
    until_second_pass(engine)
    lose(engine, 0, 1, 2)
    drain(engine)
    assert_same([future.result(0)], [one(replace(REQUEST, gate="mole"))])


def test_an_expert_that_fails_in_the_first_pass_fails_the_prompt():
    engine = ruled(ALWAYS)
    lose(engine, 2)
    [error] = answers(engine, [REQUEST])
    assert error.code == "adapter_unavailable"
    assert engine.num_prompts == 1


def outage(engine, *places):
    load = engine.bank.source.load

    def unreachable(ref):
        if ref in [REFS[place] for place in places]:
            raise StoreUnavailableError("the store does not answer")
        return load(ref)

    engine.bank.free_unused()
    engine.bank.source.load = unreachable
    return load


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_outage_in_the_second_pass_is_not_half_an_answer(batch_size):
    engine = ruled(ALWAYS, batch_size=batch_size)
    entered = spy_entering(engine)
    future = engine.submit(REQUEST)
    until_second_pass(engine)
    load = outage(engine, 0, 2)
    drain(engine)
    assert isinstance(future.exception(0), StoreUnavailableError)
    assert sum(sizes(entered)) <= 2, "the others need not be decoded any more"
    engine.bank.source.load = load
    assert_over(engine, future)


def test_an_outage_in_the_first_pass_fails_the_whole_with_it():
    engine = ruled(ALWAYS)
    outage(engine, 1)
    [error] = answers(engine, [REQUEST])
    assert isinstance(error, StoreUnavailableError)


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_an_engine_that_stops_during_the_second_pass_fails_the_whole(num_steps):
    engine = ruled(ALWAYS, batch_size=2)
    futures = [engine.submit(REQUEST) for _ in range(2)]
    until_second_pass(engine)
    for _ in range(num_steps):
        engine.step()
    futures[1].cancel()
    engine.stop()
    assert isinstance(futures[0].exception(0), UnavailableError)
    assert not wait(futures, timeout=0).not_done
    assert futures[1].cancelled()


def test_an_engine_that_stops_between_the_passes_fails_the_whole():
    """The last step of the first pass is under way when `stop` is called."""
    engine = ruled(ALWAYS)
    future = engine.submit(replace(REQUEST, max_new_tokens=1))
    step = engine.runner.step
    engine.runner.step = lambda *given: engine._refuse("the engine was stopped") or step(*given)
    drain(engine)
    assert isinstance(future.exception(0), UnavailableError)
    assert len(engine._scheduler) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [(torch.OutOfMemoryError(), "out_of_memory"), (RuntimeError("a bug"), "engine_error")],
)
def test_a_failure_of_the_moment_in_the_second_pass_does_not_decide_the_answer(error, code):
    engine = ruled(ALWAYS, batch_size=1)
    future = engine.submit(REQUEST)
    until_second_pass(engine)
    enter, tried = engine._slots.enter, []

    def broken_twice(newcomers):
        tried.extend(newcomers)
        if len(tried) <= 2:
            raise error
        return enter(newcomers)

    engine._slots.enter = broken_twice
    drain(engine)
    assert future.exception(0).code == code
    assert tried[0] is tried[1]
    assert_over(engine, future)


def test_a_device_lost_in_the_second_pass_fails_the_whole():
    engine = ruled(ALWAYS, batch_size=2)
    future = engine.submit(REQUEST)
    until_second_pass(engine)
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    Saboteur(engine, "step", lost, lambda texts: True)
    drain(engine)
    assert isinstance(future.exception(0), UnavailableError)
    assert isinstance(engine.submit(REQUEST).exception(0), UnavailableError)


def test_out_of_memory_in_either_pass_changes_no_answer():
    requests = cascades(12, seed=8)
    wanted = answers(ruled(HALF), requests)
    engine = ruled(HALF)
    error = torch.OutOfMemoryError("CUDA out of memory")
    saboteur = Saboteur(engine, "forward", error, lambda texts: len(texts) > 2)
    assert_same(answers(engine, requests), wanted)
    assert max(saboteur.sizes) > 2


def test_a_defect_in_the_choice_fails_the_prompt_and_nobody_waits(monkeypatch):
    monkeypatch.setattr(cascade, "choose", lambda *_: 1 / 0)
    engine = ruled(ALWAYS)
    error, answer = answers(engine, [REQUEST, NEIGHBOUR])
    assert isinstance(error, PromptError)
    assert error.code == "engine_error"
    assert "ZeroDivisionError" in str(error)
    assert answer.completion_tokens == 9


@pytest.fixture
def running():
    engine = ruled(
        ALWAYS,
        clock=time.monotonic,
        loads_at_once=False,
        torch_threads=1,
        batch_interval_seconds=0.002,
        batch_size=4,
    )
    engine.start()
    yield engine
    engine.stop()


def test_cascades_of_many_threads_each_get_their_own_answer(running):
    requests = cascades(24, seed=9)
    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(running.submit, requests))
    assert not wait(futures, timeout=60).not_done
    assert_same([f.result(0) for f in futures], answers(ruled(ALWAYS), requests))
    assert running.num_prompts == len(requests)


def test_cascades_cancelled_at_any_moment_leave_nobody_waiting(running):
    """Threads race with the engine's; whoever wins, every future ends and the line is empty."""
    futures = [running.submit(r) for r in cascades(40, seed=10)]
    threads = [
        threading.Thread(target=lambda part: [f.cancel() for f in part], args=(futures[i::4],))
        for i in range(4)
    ]
    running.submit(NEIGHBOUR).result(60)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wait(futures, timeout=60).not_done
    assert running.submit(NEIGHBOUR).result(60).completion_tokens == 9


def test_stop_leaves_no_cascade_waiting(running):
    futures = [running.submit(r) for r in cascades(30, seed=11)]
    wait(futures, return_when="FIRST_COMPLETED", timeout=60)
    running.stop()
    assert not wait(futures, timeout=0).not_done
    assert any(isinstance(f.exception(0), UnavailableError) for f in futures)
