"""What goes wrong is charged to the prompts concerned and to nobody else."""

import copy
import weakref
from concurrent.futures import wait

import pytest
import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.errors import PromptError, UnavailableError

from ..mole.tiny import random_adapter
from .tiny import (
    REFS,
    FakeClock,
    adapters_for,
    answers,
    ask,
    byte_tokenizer,
    drain,
    spy_entering,
    tiny_engine,
    tiny_model,
)

PLACES = {
    "slots": lambda engine: (engine._slots, "enter"),  # memory for keys and values
    "rows": lambda engine: (engine.runner._builder, "build"),  # packs and lists become tensors
    "forward": lambda engine: (engine.runner, "_forward"),
    "step": lambda engine: (engine.runner, "step"),
}


class Saboteur:
    """Wraps a part of a step: raises while `when(texts of the prompts in it)` says so."""

    def __init__(self, engine, place, error, when):
        owner, method = PLACES[place](engine)
        self.original, self.error, self.when, self.sizes = getattr(owner, method), error, when, []
        setattr(owner, method, self)

    def __call__(self, given, *rest):
        parts = getattr(given, "chunks", given)
        texts = [getattr(part, "sequence", part).request.prompt for part in parts]
        self.sizes.append(len(texts))
        if self.when(texts):
            raise self.error
        return self.original(given, *rest)


REQUESTS = [ask(text, i % 3, 3, max_new_tokens=6) for i, text in enumerate("abcdefg")]


def expected():
    return answers(tiny_engine(), REQUESTS)


def assert_clean(engine):
    """Nothing is pinned, running or waiting, and the engine still answers."""
    assert engine._running == []
    assert engine._slots._taken == {}
    assert not engine.bank._pins
    [answer] = answers(engine, [REQUESTS[0]])
    assert answer == expected()[0]


def test_an_adapter_that_cannot_be_loaded_fails_only_its_prompts():
    ghost = AdapterRef("ghost", 3)
    haunted = GenerationRequest("a", experts=(Expert(REFS[0], 0.5), Expert(ghost, 0.4)))
    engine = tiny_engine()
    results = answers(engine, [*REQUESTS, haunted])
    assert results[:-1] == expected()
    assert results[-1].code == "adapter_unavailable"
    assert "ghost@3" in str(results[-1])
    assert_clean(engine)


def test_an_adapter_that_does_not_fit_fails_only_its_prompts():
    adapters = adapters_for(tiny_model())
    adapters[REFS[1]] = random_adapter({"model.layers.0.mlp.up_proj": (47, 32)}, 2, 0)
    results = answers(tiny_engine(adapters=adapters), REQUESTS)
    failed = [i for i, result in enumerate(results) if isinstance(result, PromptError)]
    assert failed == [1, 4]
    assert results[1].code == "adapter_unfit"
    assert [r for r in results if r not in (results[1], results[4])] == [
        r for i, r in enumerate(expected()) if i not in failed
    ]


def test_an_inactive_expert_need_not_exist():
    ghost = AdapterRef("ghost", 1)
    request = GenerationRequest(
        "a", experts=(Expert(ghost, 0.4), Expert(REFS[0], 0.5)), gate="selection"
    )
    [answer] = answers(tiny_engine(), [request])
    assert answer.weights == (0, 1)


def test_a_router_that_cannot_be_loaded_fails_only_the_prompts_that_need_it():
    routed = [ask("a", 0, 1, gate=g, router="ghost") for g in ("mole", "mole-plain", "mixture")]
    engine = tiny_engine()
    first, second, mixture = answers(engine, routed)
    assert (first.code, second.code) == ("router_unavailable", "router_unavailable")
    assert mixture.completion_tokens == 12


def test_routers_take_turns():
    requests = [ask("abc", 0, 1, gate="mole-plain", router=f"r{i % 2}") for i in range(6)]
    results = answers(tiny_engine(), requests)
    assert results[0].text == results[2].text == results[4].text
    assert results[1].text == results[3].text == results[5].text
    for other in (results[2], results[4]):
        assert other.weights == pytest.approx(results[0].weights, abs=1e-5)
    assert results[1].weights != pytest.approx(results[0].weights, abs=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_out_of_memory_halves_the_batch_and_nobody_loses(place):
    engine = tiny_engine()
    requests = [ask(r.prompt, 0, max_new_tokens=4 + i) for i, r in enumerate(REQUESTS)]
    wanted = answers(tiny_engine(), requests)
    saboteur = Saboteur(
        engine, place, torch.OutOfMemoryError("CUDA out of memory"), lambda texts: len(texts) > 2
    )
    assert answers(engine, requests) == wanted
    assert max(saboteur.sizes) == 7
    assert_clean(engine)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
        MemoryError(),
    ],
)
def test_a_prompt_that_does_not_fit_alone_fails_with_its_size(error):
    engine = tiny_engine()
    Saboteur(engine, "slots", error, lambda texts: "c" in texts)
    results = answers(engine, REQUESTS)
    assert results[2].code == "out_of_memory"
    assert "(7 tokens)" in str(results[2])
    assert [r for i, r in enumerate(results) if i != 2] == [
        r for i, r in enumerate(expected()) if i != 2
    ]


@pytest.mark.parametrize("place", PLACES)
def test_a_prompt_that_breaks_a_step_fails_and_its_neighbours_are_answered(place):
    engine = tiny_engine()
    Saboteur(engine, place, ValueError("boom"), lambda texts: "c" in texts)
    results = answers(engine, REQUESTS)
    assert results[2].code == "engine_error"
    assert "ValueError: boom" in str(results[2])
    assert [r for i, r in enumerate(results) if i != 2] == [
        r for i, r in enumerate(expected()) if i != 2
    ]
    assert_clean(engine)


def test_an_error_that_passes_costs_nobody_an_answer():
    engine = tiny_engine()
    calls = []
    Saboteur(engine, "step", RuntimeError("once"), lambda texts: calls.append(1) or len(calls) == 3)
    assert answers(engine, REQUESTS) == expected()


def test_sampled_answers_survive_a_retry_unchanged():
    requests = [ask(t, temperature=1.0, seed=i, max_new_tokens=8) for i, t in enumerate("abcd")]
    wanted = answers(tiny_engine(), requests)
    engine, calls = tiny_engine(), []
    Saboteur(
        engine, "step", torch.OutOfMemoryError(), lambda texts: calls.append(1) or len(calls) == 4
    )
    assert answers(engine, requests) == wanted


def test_a_retry_forgets_the_confidence_so_far():
    requests = [ask("abc" * n, n % 3, max_new_tokens=8, wants_confidence=True) for n in (1, 2, 3)]
    wanted = [answer.confidence for answer in answers(tiny_engine(), requests)]
    engine, calls = tiny_engine(), []
    Saboteur(
        engine, "step", torch.OutOfMemoryError(), lambda texts: calls.append(1) or len(calls) == 4
    )
    found = [answer.confidence for answer in answers(engine, requests)]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_a_prompt_cancelled_before_it_runs_is_never_run():
    engine = tiny_engine(batch_size=1)
    futures = [engine.submit(request) for request in REQUESTS[:3]]
    engine.step()
    assert not futures[0].cancel()
    assert futures[1].cancel()
    drain(engine)
    assert futures[0].result() == expected()[0]
    assert futures[1].cancelled()
    assert futures[2].result() == expected()[2]
    assert engine.num_prompts == 2
    assert not wait(futures, timeout=0).not_done, "whoever waits for all of them is told"


def test_stop_fails_what_is_pending_running_and_submitted_later():
    engine = tiny_engine(batch_size=2)
    futures = [engine.submit(request) for request in REQUESTS]
    engine.step()
    futures[-1].cancel()
    engine.stop()
    late = engine.submit(REQUESTS[0])
    assert all(isinstance(f.exception(), UnavailableError) for f in [*futures[:-1], late])
    assert futures[-1].cancelled()
    assert not engine.bank._pins


@pytest.mark.parametrize("at", [1, 3])
def test_logits_that_are_no_numbers_fail_only_their_prompt(at):
    engine, calls = tiny_engine(), []
    forward = engine.runner._forward

    def spoiled(rows):
        logits = forward(rows)
        calls.append(1)
        if len(calls) == at:
            row = [chunk.sequence.request.prompt for chunk in rows.giving].index("c")
            logits[row, 5] = torch.nan
        return logits

    engine.runner._forward = spoiled
    results = answers(engine, REQUESTS)
    assert results[2].code == "not_a_number"
    assert [r for i, r in enumerate(results) if i != 2] == [
        r for i, r in enumerate(expected()) if i != 2
    ]
    assert_clean(engine)


def test_after_running_out_of_memory_the_next_batches_are_smaller():
    engine = tiny_engine()
    requests = [ask("abc", max_new_tokens=2) for _ in range(24)]
    Saboteur(engine, "step", torch.OutOfMemoryError(), lambda texts: len(texts) > 6)
    entered = spy_entering(engine)
    assert not any(isinstance(r, Exception) for r in answers(engine, requests))
    sizes = [len(newcomers) for newcomers in entered]
    assert sizes[:4] == [8, 4, 4, 4]
    assert 4 < max(sizes[4:]) <= 6, "more again, once others have fitted"


def test_running_out_of_memory_while_adapters_are_loaded_halves_the_batch_too():
    engine = tiny_engine()
    acquire = engine.bank.acquire

    def tight(ref):
        if len({*engine.bank._pins, ref}) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        acquire(ref)

    engine.bank.acquire = tight
    assert answers(engine, REQUESTS) == expected()


def test_a_lost_device_ends_the_engine_and_is_nobodys_fault():
    clock = FakeClock()
    engine = tiny_engine(batch_size=3, clock=clock)
    Saboteur(
        engine,
        "step",
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        lambda texts: True,
    )
    futures = [engine.submit(request) for request in REQUESTS]
    engine._retries.add(engine._scheduler.drain()[-1:])  # part of a batch that broke before
    futures[:-1] = [engine.submit(request) for request in REQUESTS[:-1]]
    drain(engine)
    late = engine.submit(REQUESTS[0])
    assert all(isinstance(f.exception(0), UnavailableError) for f in [*futures, late])
    assert "device-side assert" in str(late.exception())
    at = engine.progress_at
    clock.now += 1
    assert not engine.step()
    assert engine.progress_at == at, "the watchdog sees that it stands still"


def test_a_device_lost_while_an_adapter_is_loaded_is_not_the_adapters_fault():
    engine = tiny_engine()
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def acquire(ref):
        raise lost

    engine.bank.acquire = acquire
    assert all(isinstance(r, UnavailableError) for r in answers(engine, REQUESTS))


def test_a_driver_without_memory_is_not_a_lost_device():
    engine = tiny_engine()
    error = torch.AcceleratorError("CUDA error: out of memory")
    Saboteur(engine, "forward", error, lambda texts: len(texts) > 2)
    assert answers(engine, REQUESTS) == expected()


def test_a_token_outside_of_the_embedding_fails_only_its_prompt():
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens(["<extra>"])
    bad, good = answers(tiny_engine(tokenizer=tokenizer), [ask("a<extra>"), REQUESTS[0]])
    assert bad.code == "bad_prompt"
    assert "259" in str(bad)
    assert good == expected()[0]


def test_adapters_that_no_batch_uses_make_room_when_memory_runs_out():
    """The device holds four adapters, the bank may hold eight."""
    engine = tiny_engine(batch_size=2)
    put, alive = engine.bank._put, weakref.WeakSet()

    def tight(weights):
        if len(alive) >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        resident = put(weights)
        alive.add(resident)
        return resident

    engine.bank._put = tight
    requests = [ask("abc", i, gate="selection", max_new_tokens=2) for i in range(8)]
    for _ in range(2):
        assert not any(isinstance(r, Exception) for r in answers(engine, requests))
    assert_clean(engine)


def test_one_bad_prompt_costs_its_neighbours_few_retries():
    """By halves: 32 prompts, one of them bad, are not run one by one."""
    engine = tiny_engine(batch_size=32)
    Saboteur(engine, "step", ValueError("boom"), lambda texts: "d" in texts)
    entered = spy_entering(engine)
    results = answers(engine, [ask("d" if i == 3 else "p", max_new_tokens=2) for i in range(32)])
    assert [i for i, r in enumerate(results) if isinstance(r, Exception)] == [3]
    assert [len(part) for part in entered] == [32, 16, 8, 4, 2, 2, 1, 1, 1, 4, 8, 16]


def test_a_prompt_alone_survives_an_error_that_passes():
    engine, calls = tiny_engine(), []
    Saboteur(engine, "step", RuntimeError("once"), lambda texts: calls.append(1) or len(calls) == 2)
    assert answers(engine, REQUESTS[:1]) == expected()[:1]


def test_adapters_that_are_here_are_not_evicted_for_those_that_come():
    engine = tiny_engine(bank_size=4)
    answers(engine, [ask("x", 1, 2, 3, 4, gate="mixture", max_new_tokens=1)])
    loads = engine.bank.num_loads
    answers(engine, [ask("x", 0, 1, 2, 3, gate="mixture", max_new_tokens=1)])
    assert engine.bank.num_loads == loads + 1


def test_running_out_of_memory_once_more_while_it_is_freed_loses_nobody():
    engine, calls = tiny_engine(), []
    Saboteur(engine, "step", MemoryError(), lambda texts: not calls)

    def free():
        calls.append(1)
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    engine.bank.free_unused = free
    futures = [engine.submit(request) for request in REQUESTS]
    with pytest.raises(torch.AcceleratorError):
        engine.step()
    engine.stop()
    assert all(isinstance(f.exception(0), UnavailableError) for f in futures)
