"""Graphs that cannot be recorded, are wrong or fail are given up: the forward goes on."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ramole_core.engine import graphs, runner
from ramole_core.engine.graphs import cuda_recorder, graphs_work

from .graphed import MIXED, close, off, record, soon
from .tape import Tapes
from .tiny import answers, ask, tiny_engine

__all__ = ["off", "soon"]


def test_a_recorder_that_fails_is_asked_once(off):
    calls = []

    def broken(run):
        calls.append(run())
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = tiny_engine()
    record(engine, broken)
    assert close(answers(engine, MIXED), answers(tiny_engine(), MIXED))
    off(engine, "out of memory")
    assert len(calls) == 1


def test_a_model_that_waits_for_the_device_goes_on_without(off, monkeypatch):
    engine = tiny_engine()
    tapes, layer = record(engine), engine.base.model.model.layers[0]
    layer.register_forward_pre_hook(lambda module, args: args[0].sum().item() and None)
    assert close(answers(engine, MIXED), answers(tiny_engine(), MIXED))
    off(engine, "stream is capturing")
    assert tapes.num_replayed == 0


class Broken(Tapes):
    """`spoil(engine's outcome)` is what every replay from the one numbered `since` on gives."""

    def __init__(self, spoil, since=1):
        super().__init__()
        self.spoil, self.since = spoil, since

    def __call__(self, run):
        replay = super().__call__(run)

        def broken():
            outcome = replay()
            return self.spoil(outcome) if self.num_replayed >= self.since else outcome

        return broken


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_wrong_graph_is_never_used(wrong, off):
    """Neither its logits nor what it wrote: keys and values are those of the forward."""
    engine = tiny_engine()

    def spoil(outcome):
        cache = engine._slots.cache
        slots = [(s.slot, s.num_cached) for s in engine._running]
        for pair in cache._layers.values():
            for slot, place in slots:
                pair[0][slot, :, place] += 7.0
        outcome.logits[0, 3] += wrong
        return outcome

    tapes = record(engine, Broken(spoil))
    assert close(answers(engine, MIXED), answers(tiny_engine(), MIXED))
    off(engine, "logits differ")
    assert (tapes.num_recorded, tapes.num_replayed) == (1, 1)


def test_what_was_taken_for_constant_is_found_out(off):
    """A graph is tried on other inputs than those that it is recorded on."""

    def constant(run):
        outcome = run()
        return lambda: outcome

    engine = tiny_engine()
    record(engine, constant)
    assert close(answers(engine, MIXED), answers(tiny_engine(), MIXED))
    off(engine, "logits differ")


def test_a_replay_that_raises_is_the_last(off):
    def fail(outcome):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = tiny_engine()
    tapes = record(engine, Broken(fail, since=5))
    assert close(answers(engine, MIXED), answers(tiny_engine(), MIXED))
    off(engine, "out of memory")
    assert tapes.num_replayed == 5


def test_prompts_whose_numbers_overflow_do_not_end_the_graphs():
    bad = ask("bad", 0, gate="weights", w0=1e38, max_new_tokens=4)
    engine = tiny_engine()
    tapes = record(engine)
    first = engine.submit(ask("good", 1, max_new_tokens=30))
    for _ in range(5):
        engine.step()
    [error, _] = answers(engine, [bad, ask("late", 2)])
    assert error.code == "not_a_number" and first.result(0)
    assert engine.runner.graphs._graphs and tapes.num_replayed > 10


@pytest.mark.parametrize(
    ("rows", "difference"),
    [
        ([[2.0, -4.0], [1.0, 1.0]], 0.0),
        ([[2.0, -3.0], [1.0, 1.0]], 0.25),
        ([[2.0, -4.0], [1.0, float("nan")]], float("nan")),
    ],
)
def test_logits_are_compared_where_there_are_numbers(rows, difference):
    inf, nan = float("inf"), float("nan")
    wanted = torch.tensor([[2.0, -4.0, -inf], [1.0, 1.0, -inf], [nan, 1.0, 2.0]])
    found = torch.tensor([[*row, -inf] for row in [*rows, [5.0, 5.0]]])
    assert graphs._difference(found, wanted) == pytest.approx(difference, nan_ok=True)
    assert graphs._difference(found[2:], wanted[2:]) is None


# The device


def test_cpus_and_earlier_versions_of_torch_have_none(monkeypatch):
    assert tiny_engine().runner.graphs._new_recorder is None
    assert not graphs_work(torch.device("cpu"))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.13.1+cu130"))
    assert graphs_work(torch.device("cuda:1"))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    assert not graphs_work(torch.device("cuda:1"))


@pytest.mark.parametrize("setting", ["on", "off"])
def test_they_can_be_switched_off(setting, monkeypatch):
    monkeypatch.setattr(runner, "graphs_work", lambda device: True)
    used = tiny_engine(cuda_graphs=setting).runner.graphs._new_recorder is not None
    assert used == (setting == "on")


class FakeCuda(SimpleNamespace):
    """torch.cuda as far as recording goes: says what was called, in order."""

    def __init__(self, fails):
        self.said = []
        say = self.said.append

        def stream(name):
            return SimpleNamespace(
                name=name, wait_stream=lambda other: say(f"{name} waits for {other.name}")
            )

        @contextmanager
        def block(name):
            say(f"{name} {{")
            try:
                yield
            finally:
                say("}")

        main = stream("main")

        @contextmanager
        def capture(graph, pool, stream, capture_error_mode):
            with block(f"capture in {pool} on {stream.name}, {capture_error_mode}"):
                yield
                if fails:
                    raise RuntimeError("not permitted")

        super().__init__(
            graph_pool_handle=lambda: "pool",
            Stream=lambda device: stream("side"),
            current_stream=lambda device: main,
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: say("replay")),
            device=lambda device: block(str(device)),
            stream=lambda stream: block(stream.name),
            graph=capture,
        )


@pytest.mark.parametrize("fails", [False, True])
def test_the_order_of_a_recording(fails, monkeypatch):
    fake = FakeCuda(fails)
    monkeypatch.setattr(torch, "cuda", fake)
    before = ["side waits for main", "cuda:1 {", "side {", "run"]
    capture = ["capture in pool on side, thread_local {", "run", "}", "}", "}"]
    record = cuda_recorder(torch.device("cuda:1"))

    def run():
        fake.said.append("run")
        return fake.said.count("run")

    if fails:
        with pytest.raises(RuntimeError):
            record(run)
    else:
        replay = record(run)
        assert [replay(), replay()] == [2, 2], "what was recorded, wherever it is replayed"
        assert fake.said[-2:] == ["replay", "replay"]
    assert fake.said[:10] == [*before, *capture, "main waits for side"]
