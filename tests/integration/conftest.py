"""One running system for the tests that disturb nothing."""

from collections.abc import Iterator

import pytest

from tests.integration.system import RAMOLE, System, running_system


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two workers on the zoo with all its adapters uploaded."""
    home = tmp_path_factory.mktemp("system")
    up = [*RAMOLE, "up", "--workers", "2"]
    with running_system(home, up, RAMOLE_TORCH_THREADS="1") as found:
        found.upload_zoo()
        yield found
