"""Adapters and routers on their way while others decode: slow ones, lost ones, ones that return."""

import threading
import time
from concurrent.futures import wait
from dataclasses import replace
from functools import partial

import pytest
import torch

from ramole_core.engine.engine import MAX_LOAD_SECONDS
from ramole_core.errors import StoreUnavailableError

from .test_failures import assert_clean
from .tiny import REFS, FakeClock, Routers, answers, ask, drain, spy_entering, tiny_engine


class Store:
    """Stands before an engine's source: loads of `held` adapters wait until they are let go, those
    of `lost` ones raise what is written there."""

    def __init__(self, engine):
        self.source, engine.bank.source = engine.bank.source, self
        self.held, self.lost, self.loads = set(), {}, []
        self.entered, self.let_go = threading.Event(), threading.Event()

    def load(self, ref):
        self.loads.append(ref)
        if ref in self.held:
            self.entered.set()
            assert self.let_go.wait(60)
        if ref in self.lost:
            raise self.lost[ref]
        return self.source.load(ref)


def one(request):
    [answer] = answers(tiny_engine(), [request])
    return answer


SLOW = ask("slow", 0, 1, max_new_tokens=4)
OTHERS = [ask(f"{n}", *([2] * (n % 2)), max_new_tokens=3) for n in range(10)]


def test_an_adapter_that_loads_slowly_stops_nobody_else_and_its_prompt_is_answered():
    """All of a batch end in the same step, again and again: no step waits for what is not due."""
    clock = FakeClock()
    engine = tiny_engine(batch_size=2, loads_at_once=False, clock=clock)
    store = Store(engine)
    answers(engine, [ask("x", 2, max_new_tokens=1)])  # is here from now on
    store.held = {REFS[1]}
    futures = [engine.submit(request) for request in [SLOW, *OTHERS]]
    assert engine.step()
    assert store.entered.wait(60)
    wait_for_load, engine.bank.wait_for_load = engine.bank.wait_for_load, None
    while not all(future.done() for future in futures[1:]):
        assert engine.step()
    assert engine.num_steps == 1 + 5 * 3
    assert [f.result(0) for f in futures[1:]] == [one(request) for request in OTHERS]
    engine.bank.wait_for_load = wait_for_load
    clock.now += 300
    assert engine.step(), "somebody waits for what is on its way"
    assert not engine.idle
    assert engine.progress_at == clock.now, "a large adapter is no reason to end the process"
    assert not futures[0].done()
    store.let_go.set()
    drain(engine)
    assert futures[0].result(0) == one(SLOW)
    assert engine.progress_at == clock.now
    assert_clean(engine)


def test_a_load_that_never_ends_is_seen_by_the_watchdog_although_others_are_answered():
    clock = FakeClock()
    engine = tiny_engine(loads_at_once=False, clock=clock)
    store = Store(engine)
    store.held = {REFS[1]}
    slow = engine.submit(SLOW)
    engine.step()
    assert store.entered.wait(60)
    clock.now += MAX_LOAD_SECONDS
    at = engine.progress_at
    others = [engine.submit(ask(r.prompt, max_new_tokens=3)) for r in OTHERS[:2]]
    while not all(future.done() for future in others):
        engine.step()
    assert engine.progress_at == at < clock.now
    store.let_go.set()
    drain(engine)
    assert slow.result(0) == one(SLOW)
    assert engine.progress_at == clock.now


@pytest.mark.parametrize("what", ["adapter", "router"])
def test_a_load_that_fails_late_is_progress_too(what):
    """Several in a row must not add up to an engine that seems to stand still."""
    clock = FakeClock()
    engine = tiny_engine(clock=clock)
    ages = []

    def fail(_):
        ages.append(clock.now - engine.progress_at)
        clock.now += 91
        raise StoreUnavailableError("the store does not answer")

    engine.bank.acquire = engine.bank.router = fail
    places, routers = ((0, 1, 2), [None]) if what == "adapter" else ((), ["r1", "r2", "r3"])
    engine.bank.want = lambda refs: None
    engine._admission.ready = lambda ref: True
    gate = "mole-plain" if what == "router" else "mole"
    requests = [ask("a", *(places or (0,)), gate=gate, router=r) for r in routers]
    if what == "router":
        engine.bank.acquire = engine.bank.release = lambda ref: None
    found = answers(engine, requests)
    assert all(isinstance(error, StoreUnavailableError) for error in found)
    assert ages == [0, 0, 0]


def test_one_that_wants_to_be_alone_waits_for_its_adapters_and_stops_nobody():
    engine = tiny_engine(batch_size=2, loads_at_once=False)
    store = Store(engine)
    answers(engine, [ask("x", 2, max_new_tokens=1)])  # is here from now on
    store.held = {REFS[1]}
    suspect = engine.submit(replace(SLOW, alone=True))
    others = [engine.submit(request) for request in OTHERS]
    engine.step()
    assert store.entered.wait(60)
    while not all(future.done() for future in others):
        engine.step()
    assert not suspect.done()
    store.let_go.set()
    drain(engine)
    assert suspect.result(0) == one(SLOW)
    assert [f.result(0) for f in others] == [one(request) for request in OTHERS]


def test_nothing_is_read_beside_one_that_is_alone():
    """Should that kill the process, it would be blamed on the one."""
    shown = []
    watchers = {"on_running": lambda tags: shown.append(set(tags))}
    engine = tiny_engine(loads_at_once=False, watchers=watchers)
    store = Store(engine)
    answers(engine, [ask("x", 2, max_new_tokens=1)])  # is here from now on
    store.held = {REFS[0]}
    other = engine.submit(replace(SLOW, tag="other"))
    engine.step()
    assert store.entered.wait(60)
    shown.clear()
    suspect = engine.submit(ask("s", 2, max_new_tokens=2, tag="suspect", alone=True))
    waits, wait_for_load = threading.Event(), engine.bank.wait_for_load
    engine.bank.wait_for_load = lambda seconds: waits.set() or wait_for_load(seconds)
    thread = threading.Thread(target=engine.step)
    thread.start()
    assert waits.wait(20) and not shown
    store.let_go.set()
    thread.join(60)
    assert shown == [{"suspect"}]
    drain(engine)
    assert suspect.result(0) and other.result(0) == one(SLOW)


def test_one_that_wants_to_be_alone_gets_room_for_its_adapters():
    """Others fill the bank, again and again."""
    engine = tiny_engine(batch_size=2, bank_size=2, loads_at_once=False)
    order = []
    others = [engine.submit(ask(f"{n}", 2 + n % 4, max_new_tokens=3)) for n in range(40)]
    engine.step()
    suspect = engine.submit(replace(SLOW, alone=True))
    for future in (*others, suspect):
        future.add_done_callback(order.append)
    drain(engine)
    assert order.index(suspect) < 20
    assert suspect.result(0) == one(SLOW)


def test_a_router_read_ahead_tells_of_an_outage_and_leaves_the_rest_to_its_prompts():
    engine = tiny_engine()
    engine.read_router("ghost")
    assert engine.bank.router_source.loads == ["ghost"]

    def unreachable(version):
        raise StoreUnavailableError("the store does not answer")

    engine.bank.router_source.load_router = unreachable
    with pytest.raises(StoreUnavailableError):
        engine.read_router("r1")


def test_who_comes_while_the_engine_waits_for_an_adapter_is_answered():
    engine = tiny_engine(clock=time.monotonic, loads_at_once=False, torch_threads=1)
    store = Store(engine)
    store.held = {REFS[1]}
    engine.start()
    slow = engine.submit(SLOW)
    assert store.entered.wait(60)
    others = [engine.submit(ask(request.prompt, max_new_tokens=3)) for request in OTHERS]
    assert not wait(others, timeout=60).not_done
    assert not slow.done()
    store.let_go.set()
    assert slow.result(60) == one(SLOW)
    engine.stop()


def test_stop_does_not_wait_for_an_adapter_that_never_comes():
    engine = tiny_engine(clock=time.monotonic, loads_at_once=False, torch_threads=1)
    engine.bank.close = partial(engine.bank.close, seconds=0)
    store = Store(engine)
    store.held = {REFS[1]}
    engine.start()
    slow = engine.submit(SLOW)
    assert store.entered.wait(60)
    engine.stop()
    assert slow.exception(0) is not None
    store.let_go.set()


def test_a_load_that_fails_ahead_of_time_fails_only_its_prompts_and_is_tried_again_later():
    engine = tiny_engine(batch_size=2)
    store = Store(engine)
    store.lost = {REFS[1]: StoreUnavailableError("the store does not answer")}
    futures = [engine.submit(request) for request in [*OTHERS[:4], SLOW, *OTHERS[4:]]]
    engine.step()
    assert store.loads.count(REFS[1]) == 1, "while others run"
    drain(engine)
    assert futures.pop(4).exception(0) is store.lost.pop(REFS[1])
    assert [f.result(0) for f in futures] == [one(request) for request in OTHERS]
    assert answers(engine, [SLOW]) == [one(SLOW)]
    assert store.loads.count(REFS[1]) == 2
    assert_clean(engine)


def test_a_failure_that_nobody_waits_for_any_more_is_not_charged_to_who_comes_later():
    engine = tiny_engine(batch_size=1)
    store = Store(engine)
    store.lost = {REFS[1]: StoreUnavailableError("the store does not answer")}
    running, left = engine.submit(OTHERS[0]), engine.submit(SLOW)
    engine.step()
    assert store.loads == [REFS[0], REFS[1]]
    assert left.cancel()
    store.lost.clear()
    drain(engine)
    assert running.result(0) == one(OTHERS[0])
    assert answers(engine, [SLOW]) == [one(SLOW)]


def test_running_out_of_memory_ahead_of_time_fails_nobody():
    """The first load of each adapter of SLOW finds no memory, while others decode."""
    engine = tiny_engine(batch_size=4)
    put, failed = engine.bank._put, []

    def tight(weights):
        if len(failed) < 2:
            failed.append(torch.OutOfMemoryError("CUDA out of memory"))
            raise failed[-1]
        return put(weights)

    engine.bank._put = tight
    requests = [*OTHERS[::2], SLOW]
    assert answers(engine, requests) == [one(request) for request in requests]
    assert_clean(engine)


def test_an_adapter_lost_to_many_prompts_that_wait_is_not_asked_for_by_each_of_them():
    engine = tiny_engine(batch_size=4)
    store = Store(engine)
    store.lost = {REFS[0]: StoreUnavailableError("the store does not answer")}
    found = answers(engine, [ask(f"{n}", 0, max_new_tokens=2) for n in range(12)])
    assert all(isinstance(error, StoreUnavailableError) for error in found)
    assert len(store.loads) == 3, "once for those that enter together"


class CountingRouters(Routers):
    """Gives every router once."""

    def load_router(self, version):
        if version in self.loads:
            raise StoreUnavailableError(f"{version} once more")
        return super().load_router(version)


def test_routers_stay_as_long_as_prompts_need_them():
    """More than the shelf keeps by itself, and packs that are made anew whenever a prompt ends."""
    engine = tiny_engine(batch_size=8)
    routers = CountingRouters(engine.base.targets)
    engine.bank._routers._source = routers
    requests = [
        ask(f"{n}", n % 3, 3 + n % 2, router=f"r{1 + n % 4}", max_new_tokens=2 + n)
        for n in range(8)
    ]
    assert [a.text for a in answers(engine, requests)] == [one(r).text for r in requests]
    assert sorted(routers.loads) == ["r1", "r2", "r3", "r4"]


@pytest.mark.parametrize("num", [1, 6])
def test_a_lost_router_is_asked_for_once_by_those_that_enter_together(num):
    engine = tiny_engine()
    routed = [ask(f"{n}", 0, 1, router="ghost", max_new_tokens=2) for n in range(num)]
    entered = spy_entering(engine)
    *errors, answer = answers(engine, [*routed, SLOW])
    assert {error.code for error in errors} == {"router_unavailable"}
    assert engine.bank._routers._source.loads == ["ghost"]
    assert answer == one(SLOW)
    assert [len(newcomers) for newcomers in entered] == [1]
    assert_clean(engine)
