"""Fixtures of the producer's tests."""

from pathlib import Path

import pytest

from tests.unit.producer.world import World


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own RAMOLE_ variables stay outside."""
    import os

    for name in [name for name in os.environ if name.startswith("RAMOLE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def world(home: Path) -> World:
    """A client, a store that a worker has opened, a fake broker and a fake clock."""
    return World(home)
