"""A whole embedded system in a temporary data folder, for the demo and for benchmarks."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from producer.client import Client
from producer.embedded.control import start_detached, stop
from ramole_core.settings import PREFIX, Settings

# It is a system of its own: what points to another one must not reach it.
_FOREIGN: Final = tuple(PREFIX + n for n in ("HOME", "BROKER_", "STORE_", "MODEL", "ENCODER"))


@contextmanager
def temporary_system(
    prefix: str,
    keep: bool = False,
    variables: Mapping[str, str] | None = None,
    num_workers: int = 1,
) -> Iterator[Client]:
    """Broker and workers on the zoo, one of them ready; stopped at the end, gone unless `keep`.

    The folder is `client.settings.home`; it also ends when this process dies. Settings of the
    environment hold, but for those that point to another system, model or encoder; `variables`
    (RAMOLE_…) are put over them.
    """
    home = Path(tempfile.mkdtemp(prefix=prefix))
    env = own_environment() | dict(variables or {})
    settings = Settings.load(env, home=home)
    argv = [sys.executable, "-m", "producer", "--home", str(home), "up"]
    argv += ["--workers", str(num_workers)]
    try:
        start_detached(settings, argv, tied=True, env=env)
        yield Client(settings)
    finally:
        stop(settings)
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


def own_environment() -> dict[str, str]:
    """The environment without what points to another system, model or encoder."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
