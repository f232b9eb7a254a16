"""docs/formats.md against the code, both ways: whichever side moves alone, a test fails."""

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

import producer
import ramole_core
import worker
from benchmarks.report import Row
from producer.__main__ import EXIT_INTERRUPTED
from producer.cli import cli
from producer.demo import Answered, DemoRun
from producer.readers.dataset import _SUFFIXES, FORMATS
from ramole_core import keys, messages
from ramole_core.adapters import config
from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import (
    AdapterRefusedError,
    NotFoundError,
    RamoleError,
    UnavailableError,
)
from ramole_core.jobs import JobState, PromptResult, Wire
from worker import housekeeping, ledger, tasks
from worker.__main__ import EX_CONFIG

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
PACKAGES = (ramole_core, worker, producer)
CODE = re.compile(r"`([^`]+)`")


# The page


def section(title: str) -> str:
    """The text below a heading, down to the next one of the same level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", TEXT, re.M | re.S)
    assert found, f"docs/formats.md has no section {title!r}"
    return found[2] if found[1] == "##" else found[2].split("\n###")[0]


def table(text: str) -> list[list[str]]:
    """The rows, without header, of the first table in `text`."""
    found = re.search(r"^\|.*?\n\|[-|]+\|\n((?:\|.*\n)*)", text, re.M)
    assert found, f"no table in {text[:80]!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def code_of(cell: str) -> str:
    found = CODE.match(cell)
    assert found, f"no code word begins the cell {cell!r}"
    return found[1]


def words(title: str) -> list[str]:
    """The code words in the first column of a section's table."""
    return [code_of(row[0]) for row in table(section(title))]


def model_tables() -> dict[str, list[list[str]]]:
    """Qualified model name -> the rows of its table."""
    _, *parts = re.split(r"^Model: `([\w.]+)`$", TEXT, flags=re.M)
    names = parts[::2]
    assert len(set(names)) == len(names), "a model stands twice"
    return dict(zip(names, map(table, parts[1::2]), strict=True))


# The code


@cache
def modules() -> tuple[Any, ...]:
    found = []
    for package in PACKAGES:
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not info.name.endswith("__main__"):
                found.append(importlib.import_module(info.name))
    return tuple(found)


def subclasses(root: type) -> set[type]:
    modules()
    found: set[type] = set()
    kind: type
    for kind in root.__subclasses__():
        found |= {kind} | subclasses(kind)
    return {k for k in found if k.__module__.split(".")[0] in {p.__name__ for p in PACKAGES}}


@cache
def trees() -> tuple[ast.Module, ...]:
    paths = [p for package in PACKAGES for p in Path(package.__path__[0]).rglob("*.py")]
    return tuple(ast.parse(path.read_text(encoding="utf-8")) for path in paths)


def calls(*names: str) -> Iterator[ast.Call]:
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if name in names:
                    yield node


def text_argument(call: ast.Call, place: int, keyword: str) -> str | None:
    given = [k.value for k in call.keywords if k.arg == keyword]
    value = given[0] if given else call.args[place] if len(call.args) > place else None
    return value.value if isinstance(value, ast.Constant) and type(value.value) is str else None


# The store


def patterns() -> dict[str, str]:
    """Name of each constant and function of ramole_core.keys -> the key it stands for."""
    holders: dict[str, Any] = {
        "job_id": "<job_id>", "submission": "<submission>", "shard": "<shard>", "number": "<n>",
        "upload_id": "<upload_id>", "request_id": "<id>", "encoder": "<encoder>",
        "index": "<index>", "name": "<how>-<worker>",
        "ref": AdapterRef("<name>", "<version>"),  # type: ignore[arg-type]
    }  # fmt: skip
    found = {n: v for n, v in vars(keys).items() if n.isupper() and isinstance(v, str)}
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        holders["version"] = f"<{name.split('_')[0]}>"  # of an encoder or a router
        arguments = {p: holders[p] for p in inspect.signature(function).parameters}
        if name in ("registry_entry", "activation"):
            found[name] = function(1).replace("00000001", "<n>")
        else:
            found[name] = function(**arguments)
    return found


def test_every_object_of_the_store_is_listed_and_none_that_is_not_there() -> None:
    listed = {code_of(row[1]): code_of(row[0]) for row in table(section("Store"))}
    assert listed == patterns()


def literal_records() -> set[frozenset[str]]:
    """The key sets of all dicts that are written as JSON without a model."""
    found = set()
    for tree in trees():
        for scope in ast.walk(tree):
            if not isinstance(scope, ast.FunctionDef):
                continue
            assigned = {
                node.targets[0].id: node.value
                for node in ast.walk(scope)
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            for node in ast.walk(scope):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                    continue
                if node.func.id in ("to_json", "echo_json") and node.args:
                    value = node.args[0]
                    if isinstance(value, ast.Name):
                        value = assigned.get(value.id, value)
                    found |= set(dict_keys(value))
    return found


def dict_keys(node: ast.AST) -> Iterator[frozenset[str]]:
    if isinstance(node, ast.Dict):
        yield frozenset(k.value for k in node.keys if isinstance(k, ast.Constant))  # type: ignore[misc]
        for value in node.values:
            yield from dict_keys(value)


def test_the_records_without_a_model_have_the_keys_of_the_table() -> None:
    rows = table(section("Small records"))
    documented = {frozenset(CODE.findall(re.sub(r"\([^)]*\)", "", row[1]))) for row in rows}
    documented.remove(frozenset({"name", "version", "similarity"}))  # built in a comprehension
    assert documented == literal_records()


# The models


def own_fields(model: type[Wire]) -> dict[str, Any]:
    """Its fields without those of a parent that has its own table."""
    inherited = {name for base in model.__bases__ for name in getattr(base, "model_fields", {})}
    return {name: f for name, f in model.model_fields.items() if name not in inherited}


def test_every_record_has_its_table() -> None:
    models = {f"{model.__module__}.{model.__qualname__}" for model in subclasses(Wire)}
    assert models == set(model_tables())


@pytest.mark.parametrize("name", sorted(model_tables()))
def test_a_table_has_the_fields_of_its_model(name: str) -> None:
    module, _, qualname = name.rpartition(".")
    model = getattr(importlib.import_module(module), qualname)
    rows = model_tables()[name]
    assert [code_of(row[0]) for row in rows] == list(own_fields(model))
    if len(rows[0]) == 4:  # a column of defaults
        shown = {code_of(row[0]): code_of(row[2]) for row in rows}
        for field, info in own_fields(model).items():
            default = info.default
            text = default if isinstance(default, str) else json.dumps(default)
            assert shown[field] == text, field


def test_words_in_tables_are_those_the_model_takes() -> None:
    for name, rows in model_tables().items():
        module, _, qualname = name.rpartition(".")
        model = getattr(importlib.import_module(module), qualname)
        schema = model.model_json_schema()["properties"]
        for row in rows:
            choices = schema[code_of(row[0])]
            choices = choices.get("enum") or next(
                (part["enum"] for part in choices.get("anyOf", ()) if "enum" in part), None
            )
            if choices:
                assert CODE.findall(row[1]) == choices, f"{name}.{row[0]}"


# States, codes, reasons


def test_job_states() -> None:
    assert words("Job states") == [str(state) for state in JobState]


def test_error_codes_of_prompts() -> None:
    places = {"PromptError": 0, "ErrorRecord": 0, "_charged": 1, "as_prompt_error": 1}
    found = {
        code
        for name, place in places.items()
        for call in calls(name)
        if (code := text_argument(call, place, "code"))
    }
    found |= {NotFoundError.code, UnavailableError.code}  # by class: routing, a stopped engine
    assert sorted(words("Error codes of prompts")) == sorted(found)


def test_refusal_reasons() -> None:
    raised = calls("AdapterRefusedError", "_refused")
    found = {reason for call in raised if (reason := text_argument(call, 0, "reason"))}
    found |= set(config._REASONS.values())
    with pytest.raises(AdapterRefusedError) as caught:
        config.parse_config(b'{"peft_type": "LORA", "r": 1, "not_known": 1}')
    found.add(caught.value.reason)
    assert sorted(words("Refusal reasons")) == sorted(found)


def test_exit_codes() -> None:
    rows = table(section("Exit codes"))
    documented = {(code_of(r[2]), code_of(r[1]), int(r[0])) for r in rows if r[2]}
    errors: set[Any] = {RamoleError} | subclasses(RamoleError)
    assert documented == {(kind.__name__, kind.code, kind.exit_code) for kind in errors}
    assert {int(r[0]) for r in rows if not r[2]} == {0, 1, EX_CONFIG, EXIT_INTERRUPTED}


# The command line


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield prefix + name, command


def test_commands_with_json() -> None:
    with_json = {name for name, c in commands(cli) if any("--json" in p.opts for p in c.params)}
    assert set(words("JSON outputs")) == with_json
    for name, _ in commands(cli):
        assert f"`{name}`" in section("JSON outputs"), name


def test_demo_summary() -> None:
    empty = PromptResult(index=0)
    run = DemoRun([Answered({"target": "", "adapter": ""}, empty, empty)], 1.0, 1.0)
    shown = "{" + ", ".join(f'"{key}"' for key in run.summary()) + "}"
    assert shown in " ".join(section("JSON outputs").split())


def test_benchmark_rows() -> None:
    shown = ", ".join(f'"{field.name}"' for field in dataclasses.fields(Row))
    assert f"[{{{shown}}}]" in " ".join(section("Benchmarks").split())


def test_input_formats_and_suffixes() -> None:
    rows = table(section("Input datasets"))
    assert [code_of(row[0]) for row in rows] == list(FORMATS)
    shown = {suffix: code_of(row[0]) for row in rows for suffix in CODE.findall(row[1])}
    assert shown == _SUFFIXES


def test_redis_keys() -> None:
    names = {v for n, v in vars(ledger).items() if n.isupper() and str(v).startswith("ramole:")}
    names -= {messages.KEY_PREFIX}
    names |= {messages.WORKERS, messages.progress("<job_id>")}
    lua = (ROOT / "worker" / "ledger.lua").read_text()
    names |= {f"ramole:job:<job_id>:{part}" for part in re.findall(r"job_key\(\w+, '(\w+)'\)", lua)}
    listed = words("Redis")
    for name in names:
        assert name in {key.removesuffix(":<job_id>") for key in listed} | set(listed), name
    code = lua + "".join(inspect.getsource(m) for m in (ledger, messages, tasks, housekeeping))
    for key in listed:
        for part in re.sub(r"<\w+>|\*", "", key).split(":"):
            assert part in code, key
