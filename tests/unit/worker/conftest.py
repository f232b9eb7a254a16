"""What the tests of training share."""

import signal
from typing import Any

import pytest

from worker.train import interrupts


@pytest.fixture(autouse=True)
def _signals() -> Any:
    """The process takes them over; the tests want them back."""
    before = [signal.getsignal(signum) for signum in interrupts.SIGNALS]
    yield
    for signum, handler in zip(interrupts.SIGNALS, before, strict=True):
        signal.signal(signum, handler)
