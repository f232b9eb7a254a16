"""What a watcher sees and may ask: tags of what runs, prompts alone, prompts that are ended."""

import threading

import pytest

from ramole_core.errors import PromptError

from .tiny import answers, ask, drain, tiny_engine


class Quiet:
    """A lock that fails where a thread would wait for itself."""

    def __init__(self):
        self.held = False

    def acquire(self):
        assert not self.held, "the engine would wait for ever"
        self.held = True
        return True

    def release(self):
        assert self.held
        self.held = False


def test_the_watcher_knows_before_every_step_who_runs():
    shown = []
    engine = tiny_engine(watchers={"on_running": lambda tags: shown.append(set(tags))})
    long = engine.submit(ask("a", max_new_tokens=6, tag="long"))
    engine.submit(ask("b", max_new_tokens=2, tag="short"))
    engine.submit(ask("c", max_new_tokens=2))
    drain(engine)
    assert shown == [{"long", "short"}, {"long"}, set()]
    assert long.done()


def test_a_prompt_that_wants_to_be_alone_runs_alone_and_in_quiet():
    quiet, shown = threading.Lock(), []
    watcher = lambda tags: shown.append((set(tags), quiet.locked()))  # noqa: E731
    engine = tiny_engine(watchers={"on_running": watcher, "quiet": quiet})
    requests = [ask(f"p{i}", i % 3, max_new_tokens=3, tag=i, alone=i in (1, 2)) for i in range(4)]
    expected = answers(tiny_engine(), requests)
    futures = [engine.submit(request) for request in requests]
    drain(engine)
    assert [f.result(0) for f in futures] == expected
    assert [item for item in shown if item[0]] == [({1}, True), ({0, 3}, False), ({2}, True)]
    assert not quiet.locked()


def test_one_that_wants_to_be_alone_waits_for_those_that_run():
    shown = []
    engine = tiny_engine(watchers={"on_running": lambda tags: shown.append(set(tags))})
    engine.submit(ask("a", max_new_tokens=5, tag="first"))
    engine.step()
    engine.submit(ask("b", max_new_tokens=2, tag="alone", alone=True))
    engine.submit(ask("c", max_new_tokens=2, tag="last"))
    drain(engine)
    assert [tags for tags in shown if tags] == [{"first"}, {"alone"}, {"last"}]


def test_a_decoding_prompt_ends_before_the_next_step_and_its_neighbour_goes_on():
    expected = answers(tiny_engine(), [ask("a", 1, max_new_tokens=8)])
    engine = tiny_engine()
    stays = engine.submit(ask("a", 1, max_new_tokens=8))
    goes = engine.submit(ask("b", 2, max_new_tokens=50))
    engine.step()
    steps = engine.num_steps
    goes.end()
    engine.step()
    error = goes.exception(0)
    assert isinstance(error, PromptError) and error.code == "cancelled"
    assert engine.num_steps == steps + 1
    drain(engine)
    assert [stays.result(0)] == expected


def test_a_prompt_in_line_is_cancelled():
    engine = tiny_engine()
    future = engine.submit(ask("a", alone=True))
    future.end()
    drain(engine)
    assert future.cancelled()


def test_an_engine_that_ends_leaves_no_quiet_behind():
    quiet = threading.Lock()
    engine = tiny_engine(watchers={"quiet": quiet})
    future = engine.submit(ask("a", max_new_tokens=50, alone=True))
    engine.step()
    assert quiet.locked()
    engine.stop()
    assert not quiet.locked() and future.exception(0) is not None


@pytest.mark.parametrize("cancelled", [False, True])
def test_behind_one_that_is_ended_while_it_is_alone_comes_the_next_that_wants_to_be(cancelled):
    quiet, shown = Quiet(), []
    watcher = lambda tags: shown.append((set(tags), quiet.held))  # noqa: E731
    engine = tiny_engine(watchers={"on_running": watcher, "quiet": quiet})
    first, second = (engine.submit(ask(tag, max_new_tokens=9, tag=tag, alone=True)) for tag in "ab")
    engine.step()
    if cancelled:
        assert second.cancel()
    first.end()
    drain(engine)
    assert first.exception(0).code == "cancelled"
    assert second.cancelled() if cancelled else second.result(0).completion_tokens
    assert shown == [({"a"}, True), *([] if cancelled else [({"b"}, True)]), (set(), True)]
    assert not quiet.held


def test_quiet_ends_when_others_take_the_place_of_one_that_was_alone():
    quiet = Quiet()
    engine = tiny_engine(watchers={"quiet": quiet})
    first = engine.submit(ask("a", max_new_tokens=60, alone=True))
    second = engine.submit(ask("b", max_new_tokens=60))
    engine.step()
    assert quiet.held
    first.end()
    engine.step()
    assert not quiet.held
    assert [s.future for s in engine._running] == [second]
