"""The engine in its own thread: many submitters, counters, an idle life."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from ramole_core.errors import PromptError, UnavailableError

from .tiny import FakeClock, answers, ask, drain, tiny_engine


@pytest.fixture
def running():
    engine = tiny_engine(
        clock=time.monotonic, loads_at_once=False, torch_threads=1, batch_interval_seconds=0.002
    )
    engine.start()
    yield engine
    engine.stop()


def test_many_threads_submit_and_each_gets_its_own_answer(running):
    requests = [ask(f"prompt {i}", i % 8, max_new_tokens=4) for i in range(40)]
    expected = answers(tiny_engine(), requests)
    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(running.submit, requests))
    wait(futures, timeout=60)
    assert [f.result(0) for f in futures] == expected
    assert running.num_prompts == 40
    assert running.num_generated_tokens == sum(r.completion_tokens for r in expected)


def test_a_bug_in_the_bookkeeping_leaves_nobody_waiting(running):
    original = running._scheduler.admit
    seen = threading.Event()

    def broken(*_):
        seen.set()
        raise ZeroDivisionError

    running._scheduler.admit = broken
    assert seen.wait(30)
    error = running.submit(ask("a")).exception(timeout=30)
    assert isinstance(error, PromptError)
    assert error.code == "engine_error"
    running._scheduler.admit = original
    assert running.submit(ask("a", max_new_tokens=2)).result(timeout=30).completion_tokens == 2


def test_a_watcher_that_raises_leaves_nobody_waiting(running):
    def broken(tags):
        raise MemoryError

    running._watchers._on_running = broken
    error = running.submit(ask("a", tag="a")).exception(timeout=30)
    assert isinstance(error, PromptError) and error.code == "engine_error"


def test_a_system_that_does_not_say_which_cpus_are_free_is_no_obstacle(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    engine = tiny_engine(clock=time.monotonic, torch_threads=0)
    engine.start()
    assert engine.submit(ask("a", max_new_tokens=2)).result(timeout=30).completion_tokens == 2
    engine.stop()


def test_a_thread_that_cannot_begin_ends_the_engine(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda num: 1 / 0)
    engine = tiny_engine(clock=time.monotonic, torch_threads=1)
    future = engine.submit(ask("a"))
    engine.start()
    assert isinstance(future.exception(timeout=30), UnavailableError)


def test_stop_ends_the_thread(running):
    thread = running._thread
    running.stop()
    assert not thread.is_alive()


def test_what_came_before_the_start_is_no_standstill():
    clock = FakeClock()
    engine = tiny_engine(clock=clock)
    assert not engine.ended
    clock.now += 1000
    engine._run = lambda: None
    engine.start()
    assert engine.progress_at == clock.now
    engine.stop()


def test_progress_ticks_on_every_step_and_when_idle():
    clock = FakeClock()
    engine = tiny_engine(clock=clock, batch_interval_seconds=5.0)
    assert engine.idle
    clock.now += 1
    assert not engine.step()
    assert engine.progress_at == clock.now
    future = engine.submit(ask("a", max_new_tokens=3))
    assert not engine.step(), "one prompt waits for others until the interval is over"
    clock.now += 5
    assert engine.step()
    assert not engine.idle
    assert engine.num_steps == 1
    assert engine.progress_at == clock.now
    drain(engine)
    assert engine.idle
    assert future.result().completion_tokens == engine.num_generated_tokens == 3
    assert (engine.num_prompts, engine.num_steps) == (1, 3)


class Panic(BaseException):
    """As pyo3's PanicException, which a tokenizer's Rust code raises, is no Exception."""


def test_a_panic_ends_the_engine_and_leaves_nobody_waiting(running):
    def panic(*_):
        raise Panic

    running.base.codec.decode = panic
    futures = [running.submit(ask("a", max_new_tokens=2)) for _ in range(3)]
    assert all(isinstance(f.exception(timeout=30), UnavailableError) for f in futures)
    running._thread.join(30)
    assert not running._thread.is_alive() and "Panic" in running.ended
    assert isinstance(running.submit(ask("b")).exception(timeout=0), UnavailableError)


def test_a_device_lost_outside_of_a_step_ends_the_engine(running):
    def lost(*_):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    running._scheduler.admit = lost
    assert isinstance(running.submit(ask("a")).exception(timeout=30), UnavailableError)
    running._thread.join(30)
    assert not running._thread.is_alive()


def test_whom_the_device_was_lost_with_stays_in_view():
    """A worker that ends now is to charge them."""
    shown = []
    engine = tiny_engine(watchers={"on_running": lambda tags: shown.append(set(tags))})
    future = engine.submit(ask("a", max_new_tokens=5, tag="last"))

    def lose(rows):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    engine.runner._forward = lose
    engine.step()
    assert engine.ended and future.exception(0) is not None
    assert shown == [{"last"}]
