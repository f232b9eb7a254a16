"""What goes wrong around a command is one line: data folder, settings, stdout, defects."""

import io
import json
import os
from pathlib import Path

import pytest

from producer import __main__ as console
from tests.unit.producer.test_commands import Ramole, ramole
from tests.unit.producer.world import World

__all__ = ["ramole"]


def test_a_data_folder_that_is_not_there_is_named_and_not_made(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    home = world.home / "nope" / "x"
    for words in ("status j", "jobs", "logs j", "adapters list", "results j", "search x"):
        assert console.main(["--home", str(home), *words.split()]) == 5
        assert f"the data folder {home} does not exist" in capfd.readouterr().err
    assert console.main(["--home", str(home), "doctor"]) == 5
    assert f"the data folder {home} does not exist" in capfd.readouterr().out
    assert not home.parent.exists()


def test_a_data_folder_that_is_a_file_is_no_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert console.main(["--home", str(tmp_path / "file"), "jobs"]) == 2
    assert f"the data folder {tmp_path / 'file'} is no folder" in capfd.readouterr().err


def test_a_name_that_is_no_text_is_json_all_the_same(
    ramole: Ramole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8", errors="strict") as strict:
        monkeypatch.setattr("sys.stdout", strict)
        assert ramole("submit", os.fsdecode(b"\xff.jsonl"), "--json")[0] == 4
    assert json.loads((tmp_path / "out").read_text())["error"]["code"] == "not_found"


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("command", ["status j", "results j", "status nobody --json", "jobs"])
def test_a_stdout_that_cannot_be_written_is_one_line(
    command: str, buffering: int, ramole: Ramole, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.client.submit(["a"], job_id="j")
    world.finish("j")
    with io.TextIOWrapper(open("/dev/full", "wb", buffering), write_through=True) as full:
        monkeypatch.setattr("sys.stdout", full)
        code, _, err = ramole(*command.split())
    assert code == 5 and err.splitlines()[-1] == (
        "ramole: error: stdout cannot be written: No space left on device; send it elsewhere"
    )


@pytest.mark.parametrize("command", ["up", "up --detach", "down"])
def test_a_data_folder_that_cannot_be_used_is_named(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "supervisor.lock").mkdir()
    homes = [tmp_path] if command == "down" else [tmp_path, Path("/proc/nope")]
    for home in homes:
        assert console.main(["--home", str(home), *command.split()]) == 2
        assert f"ramole: error: RAMOLE_HOME={home}: " in capfd.readouterr().err


def test_an_unexpected_error_is_one_line(
    ramole: Ramole, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job_id: str) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(world.client, "status", broken)
    code, _, err = ramole("status", "j")
    assert code == 1 and err.count("\n") == 1 and "RAMOLE_LOG_LEVEL=debug" in err
    monkeypatch.setenv("RAMOLE_LOG_LEVEL", "debug")
    assert "Traceback" in ramole("status", "j")[2]


def test_settings_that_do_not_exist_are_one_line(
    ramole: Ramole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMOLE_BROKR_URL", "x")
    code, _, err = ramole("doctor")
    assert code == 2 and "did you mean RAMOLE_BROKER_URL" in err and err.count("\n") == 1
