"""Building the zoo, at a scale of seconds."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ramole_core.zoo import build as build_module
from ramole_core.zoo.__main__ import main
from ramole_core.zoo.build import Scale, build
from ramole_core.zoo.tasks import TASKS
from ramole_core.zoo.training import Recipe

TINY = Scale(
    skills=Recipe(steps=2, batch_size=4, learning_rate=1e-3),
    prompts=Recipe(steps=2, batch_size=4, learning_rate=1e-3),
    adapter=Recipe(steps=2, batch_size=4, learning_rate=1e-3),
    tasks=TASKS[:3],
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_builds_the_same_files_and_replaces_the_old(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "stale").touch()
    build(tmp_path / "one", seed=3, say=said.append, scale=TINY)
    build(tmp_path / "two", seed=3, say=said.append, scale=TINY)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert {path.name for path in (tmp_path / "one" / "adapters").iterdir()} == {
        task.name for task in TINY.tasks
    }
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    assert any("adapter 3/3" in line for line in said)


def test_a_build_that_is_cut_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "make_adapters", cut)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept").touch()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "data", seed=0, say=print, scale=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["kept"]


def test_check_prints_json_for_a_script(tmp_path: Path) -> None:
    build(tmp_path / "data", seed=0, say=lambda line: None, scale=replace(TINY, tasks=TASKS[:1]))
    result = CliRunner().invoke(main, ["check", "--json", "--data", str(tmp_path / "data")])
    assert result.exit_code == 0
    accuracy = json.loads(result.stdout)
    assert accuracy["own"].keys() == accuracy["base"].keys() == {TASKS[0].name}


def test_importing_the_zoo_does_not_import_torch() -> None:
    program = "import sys, ramole_core.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
