"""How the embedded broker is started: private socket, AOF on, nothing evicted, no TCP port."""

import os
import stat
from pathlib import Path

from producer.embedded.server_choice import choose_server
from ramole_core.errors import ConfigError
from ramole_core.settings import Settings


def broker_argv(settings: Settings) -> list[str]:
    """The command line of the broker; makes its folders. Raises ConfigError."""
    data = settings.home / "broker"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_folder(settings.socket_path.parent)
    options = {
        "--port": "0",
        "--unixsocket": str(settings.socket_path),
        "--unixsocketperm": "700",
        "--dir": str(data),
        "--appendonly": "yes",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
    }
    return [str(choose_server().path), *(word for pair in options.items() for word in pair)]


def private_folder(folder: Path) -> None:
    """Makes the folder for this user alone. Raises ConfigError when somebody else owns it.

    A socket path too long for the home lies under the temporary folder, where others may write.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} belongs to somebody else; set RAMOLE_HOME to a folder of your own"
        )
