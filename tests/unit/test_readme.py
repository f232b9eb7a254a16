"""The README against the code: settings, options, dependencies, commands and the tree."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from producer.cli import cli
from ramole_core.jobs import JobOptions
from ramole_core.settings import describe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found, f"README.md has no section {title!r}"
    return found[1]


def table(title: str) -> list[list[str]]:
    """The rows, without header, of the first table of a section."""
    found = re.search(r"^\|[-|]+\|\n((?:\|.*\n)*)", section(title), re.M)
    assert found, f"no table in {title!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_settings_is_the_code_s() -> None:
    rows = [(code(v)[0], "".join(code(default)), doc) for v, default, doc in table("Settings")]
    assert rows == describe()


def test_the_table_of_options_names_every_option() -> None:
    named = [option for row in table("Options of a job") for option in code(row[0])]
    assert sorted(named) == sorted(JobOptions.model_fields)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.split(r"[\[<>=;! ]", wanted_line)[0] for wanted_line in wanted} - {"ramole"}
    rows = table("Why each dependency")
    assert {code(row[0])[0] for row in rows} == names
    assert all(len(row) == 3 and all(row) for row in rows)


def tree_paths() -> Iterator[str]:
    """The paths of the tree; two spaces of indentation a level."""
    folders: list[str] = []
    for line in section("Tree").split("```")[1].strip("\n").splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        yield "".join(folders)


def test_every_path_of_the_tree_exists() -> None:
    paths = list(tree_paths())
    assert len(set(paths)) == len(paths)
    missing = [
        p for p in paths if not (ROOT / p).exists() or p.endswith("/") != (ROOT / p).is_dir()
    ]
    assert missing == []


def test_the_tree_lists_every_top_level_file_and_every_package() -> None:
    listed = set(tree_paths())
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for name in ("ramole_core", "worker", "producer", "benchmarks", "tests")
        for path in [*(ROOT / name).glob("__init__.py"), *(ROOT / name).glob("*/__init__.py")]
    }
    assert packages <= listed
    try:
        found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is needed to know which files are ours")
    if found.returncode != 0:
        pytest.skip("not a checkout")
    tracked = found.stdout.splitlines()
    assert {path for path in tracked if "/" not in path} <= listed
    assert {path.split("/")[0] + "/" for path in tracked if "/" in path} <= listed


def command_of(words: list[str]) -> click.Command:
    command: click.Command = cli
    for word in words:
        if not isinstance(command, click.Group):
            break
        assert word in command.commands, f"no command {' '.join(words)}"
        command = command.commands[word]
    return command


def command_lines() -> list[list[str]]:
    """The words after `ramole` or the compose producer in all code blocks."""
    blocks = re.findall(r"```(?:sh|console|cron)\n(.*?)```", TEXT, re.S)
    runs = r"^(?:[$>] +)?(?:.*/)?(?:ramole|docker compose run --rm producer) +([a-z].*)"
    return [re.split(r"\s|;", found) for block in blocks for found in re.findall(runs, block, re.M)]


def test_the_commands_shown_exist_with_their_flags() -> None:
    assert len(command_lines()) > 10
    for words in command_lines():
        command = command_of(words)
        known = {flag for parameter in command.params for flag in parameter.opts}
        shown = {word for word in words if re.fullmatch(r"--[a-z-]+", word)}
        assert shown <= known, " ".join(words)


def test_the_make_targets_shown_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make (\w+)", TEXT, re.M)) <= targets


def test_every_command_is_mentioned() -> None:
    for name, command in cli.commands.items():
        subs = command.commands if isinstance(command, click.Group) else [""]
        for sub in subs:
            full = f"{name} {sub}".strip()
            assert re.search(rf"`(ramole )?{full}[` ]|ramole {full}\b", TEXT), full


def test_the_benchmarks_named_are_all_there_are() -> None:
    named = set(re.findall(r"python -m benchmarks\.(\w+)", section("Benchmarks")))
    programs = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "report"}
    programs |= {p.parent.name for p in (ROOT / "benchmarks").glob("*/__main__.py")}
    assert named == programs


def test_no_path_of_a_machine() -> None:
    pages = [TEXT, (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")]
    assert not any(re.search(r"/(work|home|root|tmp)/", page) for page in pages)


def test_the_figures_of_speed_are_those_of_the_benchmark() -> None:
    rows = {r["name"]: r for r in json.loads((ROOT / "docs/speed.json").read_text())["rows"]}

    def shown(name: str) -> str:
        if name not in rows:
            return ""
        value, target = rows[name]["value"], rows[name]["target"]
        if target is None:
            return f"{value:.3g}"
        return f"{value:.3g} ({'' if value >= target else 'missed: '}≥ {target:g})"

    for cells in table("How fast it is"):
        name = code(cells[0])[0]
        assert cells[2:] == [shown(name), shown(f"{name}_bf16")], name
