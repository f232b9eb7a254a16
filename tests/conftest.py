"""Fixtures that several rooms share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.servers import redis_server


@pytest.fixture(scope="session")
def _redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_url(_redis_url: str) -> str:
    """An empty real Redis (one server a session, flushed for every test)."""
    from redis import Redis

    Redis.from_url(_redis_url).flushall()
    return _redis_url


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A short data folder of one test."""
    path = tmp_path / "home"
    path.mkdir()
    return path
