import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_step_fails(request, caplog):
    """The engine answers even when a step breaks, by running the prompts again one by one. Tests
    that are not about failures must not pass thanks to that."""
    yield
    if not request.module.__name__.endswith(("_failures", "_thread")):
        broken = [r for r in caplog.get_records("call") if r.name == "ramole_core.engine.engine"]
        assert not broken, broken[0].getMessage()


@pytest.fixture(autouse=True)
def no_callback_raises(request, caplog):
    """A callback that raises is only logged, and whoever waits for what it was to do waits on."""
    yield
    found = [
        r
        for r in caplog.get_records("call")
        if r.name in ("concurrent.futures", "ramole_core.engine.cascade")
        and r.levelname != "WARNING"
    ]
    assert not found or "defect" in request.node.name, found[0].getMessage()
