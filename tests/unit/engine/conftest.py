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
    if not request.module.__name__.endswith(("test_failures", "test_thread")):
        broken = [r for r in caplog.get_records("call") if r.name == "ramole_core.engine.engine"]
        assert not broken, broken[0].getMessage()
