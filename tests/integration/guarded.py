"""Redis with the users of deploy/redis, and who connects to it by which name."""

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

from producer.client import Client
from ramole_core.settings import Settings
from tests.integration.system import worker_process
from tests.servers import free_port, redis_server

ROOT = Path(__file__).parents[2]
START = ROOT / "deploy" / "redis" / "start.sh"
ROLES = ("admin", "worker", "producer")


def new_passwords() -> dict[str, str]:
    """One for each role, easy to find in what was printed."""
    return {role: f"S3CRET-{role}-{secrets.token_hex(6)}" for role in ROLES}


@contextlib.contextmanager
def guarded_redis(
    folder: Path, port: int, passwords: dict[str, str], *options: str
) -> Iterator[str]:
    """Redis started by deploy/redis/start.sh, as compose does; Debian's where it is there."""
    env = {f"REDIS_{role.upper()}_PASSWORD": passwords[role] for role in ROLES}
    folder.mkdir(parents=True, exist_ok=True)
    binary = shutil.which("redis-server")
    with redis_server(
        folder, "--maxmemory-policy", "noeviction", *options, port=port, binary=binary,
        launcher=("sh", START), env=env | {"TMPDIR": str(folder)},
    ) as url:  # fmt: skip
        yield url


@dataclass
class Guarded:
    """A guarded Redis, a directory store, and workers and producers on both."""

    folder: Path
    port: int = field(default_factory=free_port)
    passwords: dict[str, str] = field(default_factory=new_passwords)

    def url(self, role: str, password: str | None = None) -> str:
        return f"redis://{role}:{password or self.passwords[role]}@127.0.0.1:{self.port}/0"

    def redis(self, role: str) -> "Redis":
        return Redis.from_url(self.url(role), decode_responses=True)

    def environment(self, role: str, **changes: str) -> dict[str, str]:
        """What a process of this role gets: its own data folder, the shared store."""
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAMOLE_")}
        home = self.folder / role
        home.mkdir(exist_ok=True)
        return {
            **outside,
            "RAMOLE_HOME": str(home),
            "RAMOLE_BROKER_URL": self.url(role),
            "RAMOLE_STORE_URL": str(self.folder / "store"),
            "RAMOLE_TORCH_THREADS": "1",
            "RAMOLE_REAPER_SECONDS": "0.5",
            **changes,
        }

    def client(self, **changes: str) -> Client:
        return Client(Settings.load(self.environment("producer", **changes)))

    def worker(
        self, name: str, **changes: str
    ) -> AbstractContextManager["subprocess.Popen[bytes]"]:
        env = self.environment("worker", **changes)
        return worker_process(["-m", "worker"], env, self.folder / f"{name}.log")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def refusals(self) -> list[str]:
        """What the ACL refused since the last look."""
        admin = self.redis("admin")
        found = [f"{e['username']}: {e['context']} {e['object']}" for e in admin.acl_log()]
        admin.acl_log_reset()
        return found
