"""Recorded decoding steps give what the forward gives, and end with what they read.

What a CUDA graph does stands on a tape here (`tape`); the one test that needs a GPU says so.
"""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from ramole_core.engine import graphs, static_rows
from ramole_core.engine.graphs import Graphs, graphs_work
from ramole_core.engine.static_rows import Shape, StaticRows
from ramole_core.mole import partition
from ramole_core.mole.attach import target_shapes

from ..mole.tiny import CONFIGS, random_adapter, tiny_model
from .graphed import MIXED, ROUTED, close, record, soon
from .test_invariance import Spy
from .tiny import REFS, answers, ask, drain, generated, spy_tokens, tiny_engine

__all__ = ["soon"]


# The same answers


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("batch_size", "num_steps"), [(16, 0), (5, 1), (3, 3)])
def test_logits_are_those_of_the_model_by_itself(kind, batch_size, num_steps):
    """Of every architecture, beyond sliding windows, whoever comes and goes meanwhile."""
    spy = Spy(kind, batch_size=batch_size)
    tapes, forward = record(spy.engine), spy.forward
    spy.forward = lambda rows: forward(rows).clone()  # the spy keeps them for longer
    spy.check(num_steps=num_steps)
    assert tapes.num_replayed > tapes.num_recorded > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("calls", [10**15, -(10**15)], ids=["one segment", "many segments"])
def test_tokens_and_weights_are_those_without_graphs(temperature, calls, monkeypatch):
    monkeypatch.setattr(partition, "CALLS", calls)
    requests = [replace(r, temperature=temperature, seed=seed) for seed, r in enumerate(MIXED)]
    engine = tiny_engine()
    tapes = record(engine)
    assert close(answers(engine, requests), answers(tiny_engine(), requests))
    assert tapes.num_replayed > 10
    if calls < 0:
        assert any(len(shape.mixtures) > 2 for shape in engine.runner.graphs._graphs)


def test_linears_without_scores_count_in_the_weights():
    targets = target_shapes(tiny_model())
    parts = ("q_proj", "down_proj"), ("q_proj",)
    adapters = {
        REFS[i]: random_adapter({t: s for t, s in targets.items() if t.endswith(part)}, 4, i)
        for i, part in enumerate(parts)
    }
    requests = [ask(text, 0, 1, **ROUTED) for text in ("abc", "uvwxyz")]
    engine = tiny_engine(adapters=adapters)
    tapes = record(engine)
    assert close(answers(engine, requests), answers(tiny_engine(adapters=adapters), requests))
    assert tapes.num_replayed > 10


def test_prompts_come_and_go_within_one_graph():
    """Rows and slots are padded, one pack serves all: few graphs for many sets of prompts."""
    requests = [ask(f"{n:02d}", n % 2, 2, max_new_tokens=6 + n % 9) for n in range(24)]
    engine = tiny_engine(batch_size=8)
    tapes, seen = record(engine), spy_tokens(engine)
    assert close(answers(engine, requests), answers(tiny_engine(), requests))
    assert len({s.slot for s in seen}) == 1 and tapes.num_replayed > 4 * tapes.num_recorded


def test_graphs_are_made_when_the_same_step_has_come_up_for_long(monkeypatch):
    monkeypatch.setattr(graphs, "PATIENCE", 20)
    engine = tiny_engine()
    tapes = record(engine)
    answers(engine, [ask("abc", 1, max_new_tokens=20)])  # 19 steps that decode
    assert tapes.num_recorded == 0
    answers(engine, [ask("xyz", 1, max_new_tokens=20)])
    assert (tapes.num_recorded, tapes.num_replayed) == (1, 1 + 18)


def test_the_graphs_used_last_stay(monkeypatch):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    engine = tiny_engine()
    tapes = record(engine)
    for place in (0, 1, 0, 2):
        answers(engine, [ask("abc", place)])
    kept = [m.packed.experts[0].name for s in engine.runner.graphs._graphs for m in s.mixtures]
    assert kept == ["a0", "a2"] and tapes.num_recorded == 3


# Which steps


def shapes(requests, **settings):
    """The shape of every forward: None, or what it is."""
    engine, found = tiny_engine(**settings), []
    run = engine.runner._forward
    engine.runner._forward = lambda rows: found.append((Shape.of(rows), rows.chunks)) or run(rows)
    for request in requests:
        engine.submit(request)
        engine.step()
    drain(engine)
    return found


def test_only_steps_in_which_everybody_decodes_have_a_shape(monkeypatch):
    found = shapes([*MIXED, ask("x" * 70, max_new_tokens=4)], batch_size=5)
    for shape, chunks in found:
        assert (shape is not None) == all(c.start >= len(c.sequence.prompt_ids) for c in chunks)
    assert {s is None for s, _ in found} == {True, False}
    monkeypatch.setattr(static_rows, "MAX_ROWS", 4)
    assert {s.num_rows for s, _ in shapes(MIXED) if s is not None} <= {1, 2, 4}


def test_the_last_token_of_a_prompt_has_none_while_others_wait_for_room():
    """They are no part of the forward, and padding would write into their slots."""
    engine, waiting = tiny_engine(), []
    tapes, run = record(engine), engine.runner._forward
    engine.runner.prefill_tokens = 1

    def watch(rows):
        if len(rows.chunks) < len(engine._running):
            waiting.append(Shape.of(rows))
        return run(rows)

    engine.runner._forward = watch
    requests = [ask(text, 1, max_new_tokens=12) for text in ("ab", "abcdefgh", "xyz")]
    assert close(answers(engine, requests), answers(tiny_engine(), requests))
    assert waiting and set(waiting) == {None} and tapes.num_replayed


def test_shapes_are_few():
    rows = {static_rows._rounded_rows(n) for n in range(1, 257)}
    widths = [static_rows._rounded_width(n) for n in range(1, 8193)]
    assert len(rows) == 3 + 32 and min(rows) == 1
    assert all(n <= width <= max(n + 63, 1.25 * n) for n, width in enumerate(widths, 1))
    assert len({*widths}) < 40


def test_every_slot_has_one_row():
    engine, seen = tiny_engine(batch_size=6), []
    run = engine.runner._forward

    def check(rows):
        shape = Shape.of(rows)
        if shape is not None:
            static = StaticRows(shape, rows)
            static.fill(rows)
            there, real = static.rows(), len(rows.chunks)
            decoding, slots = there.attention.decoding, there.attention.slots
            seen.append(shape.num_rows - real)
            assert sorted(slots.tolist()) == list(range(shape.num_rows))
            assert decoding.by_slot[slots].tolist() == list(range(shape.num_rows))
            assert (decoding.lengths[slots] == there.positions[0] + 1).all()
            assert not there.positions[0, real:].any(), "padding writes position 0"
            assert torch.equal(there.ids[:, :real], rows.ids)
            assert torch.equal(there.positions[:, :real], rows.positions)
            assert torch.equal(slots[:real], rows.attention.slots)
        return run(rows)

    engine.runner._forward = check
    answers(engine, [ask(f"{n}" * (n + 1), n % 3, max_new_tokens=4 + n) for n in range(9)])
    assert {0, 1, 2} <= {*seen}


# What a graph reads


def test_slots_laid_out_anew_end_all_graphs():
    engine = tiny_engine(batch_size=3, max_batch_tokens=1024)
    tapes = record(engine)
    futures = [engine.submit(ask("short", 0, max_new_tokens=60))]
    for _ in range(6):
        engine.step()
    [old] = engine.runner.graphs._graphs
    futures.append(engine.submit(ask("long " * 30, 0, max_new_tokens=40)))
    engine.step()
    assert not engine.runner.graphs._graphs
    replayed = tapes.num_replayed
    drain(engine)
    assert tapes.num_replayed > replayed + 10
    assert all(shape.layout > old.layout for shape in engine.runner.graphs._graphs)
    wanted = answers(
        tiny_engine(batch_size=1),
        [ask("short", 0, max_new_tokens=60), ask("long " * 30, 0, max_new_tokens=40)],
    )
    assert close([f.result(0) for f in futures], wanted)


def test_a_graph_of_an_earlier_layout_is_never_replayed(monkeypatch):
    """Even if nobody says that slots were laid out anew."""
    monkeypatch.setattr(Graphs, "clear", lambda self: None)
    engine = tiny_engine(batch_size=3, max_batch_tokens=1024)
    record(engine)
    requests = [ask("a", 0, max_new_tokens=40), ask("long " * 30, 0, max_new_tokens=30)]
    found = []
    for request in [*requests, requests[0]]:
        found += answers(engine, [request])
    assert len({shape.layout for shape in engine.runner.graphs._graphs}) > 1
    plain = answers(tiny_engine(batch_size=1), requests)
    assert close(found, [*plain, plain[0]])


def test_graphs_do_not_hold_the_packs_and_end_with_them():
    requests = [ask("abc", 0, max_new_tokens=20), ask("xyz", 1, max_new_tokens=20)]
    engine = tiny_engine()
    tapes = record(engine)
    found = answers(engine, requests)
    packs = [weakref.ref(packed) for packed in engine.bank._packs._packs.values()]
    engine.bank._packs.clear()
    engine.runner._rows = None
    gc.collect()
    assert packs and all(pack() is None for pack in packs)
    old, recorded = [*engine.runner.graphs._graphs], tapes.num_recorded
    assert old and not any(shape.alive for shape in old)
    found += answers(engine, requests)
    assert tapes.num_recorded > recorded
    assert all(shape.alive for shape in engine.runner.graphs._graphs)
    assert close(found, 2 * answers(tiny_engine(), requests))


def test_a_broken_step_ends_all_graphs():
    engine = tiny_engine()
    record(engine)
    answers(engine, [ask("abc", 0, max_new_tokens=9)])
    assert engine.runner.graphs._graphs
    engine.runner.forget()
    assert not engine.runner.graphs._graphs


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", CONFIGS)
def test_on_a_gpu_answers_are_those_without_graphs(kind, monkeypatch):
    if not graphs_work(torch.device("cuda")):
        pytest.skip("needs a later torch")
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph)
    )
    model = tiny_model(kind).to("cuda")
    requests = [*MIXED, ask("long " * 30, 0, max_new_tokens=30), *(MIXED * 2)]
    plain = tiny_engine(model, cuda_graphs="off")
    wanted = generated(plain, requests), answers(plain, requests)
    assert not replays
    engine = tiny_engine(model)
    found = generated(engine, requests), answers(engine, requests)
    assert engine.runner.graphs._new_recorder is not None, "it was not given up"
    assert len(replays) > 20
    assert found[0] == wanted[0]
    assert close(found[1], wanted[1])
