"""The command line: exit codes, what is on stdout, one line for every error."""

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from producer import __main__ as console
from producer.cli import cli
from producer.embedded.lock import Holder
from producer.job_status import JobStatus
from producer.progress import ProgressLine
from ramole_core import keys
from ramole_core.jobs import JobState
from ramole_core.store.base import to_json
from tests.unit.producer.test_client import registered, verdict
from tests.unit.producer.world import World, write_adapter


class Ramole:
    """Runs commands in this process over the world's fakes."""

    def __init__(self, world: World, capfd: pytest.CaptureFixture[str]) -> None:
        self._world = world
        self._capfd = capfd

    def __call__(self, *args: str) -> tuple[int, str, str]:
        self._capfd.readouterr()
        code = console.main(["--home", str(self._world.home), *args])
        out, err = self._capfd.readouterr()
        return code, out, err

    def json(self, *args: str) -> list[Any]:
        return [json.loads(line) for line in self(*args, "--json")[1].splitlines()]


@pytest.fixture
def ramole(
    world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Ramole:
    monkeypatch.setattr("producer.commands.common.Client", lambda settings: world.client)
    return Ramole(world, capfd)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\noops\n')
    return str(path)


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """All of them, groups too."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        found[prefix + name] = command
    return found


@pytest.mark.parametrize("name", commands(cli))
def test_every_command_helps_with_an_example(name: str, ramole: Ramole) -> None:
    code, out, _ = ramole(*name.split(), "--help")
    assert code == 0 and "Example: " in out and "ramole " in out


def test_the_commands_are_those_of_the_issue() -> None:
    wanted = (
        "up down submit status jobs wait results cancel retry recover search demo worker doctor "
        "logs"
    )
    groups = {"adapters", "train", "encoders", "routers"}
    adapters = {f"adapters {name}" for name in ("upload", "list", "show", "remove")}
    versions = {f"encoders {name}" for name in ("list", "use", "rollback")}
    versions |= {f"routers {name}" for name in ("list", "use", "rollback")}
    others = {"train retriever", "train router", "jobs prune"}
    assert set(commands(cli)) == set(wanted.split()) | groups | adapters | versions | others


def test_submit_prints_the_id_and_nothing_else_on_stdout(ramole: Ramole, dataset: str) -> None:
    code, out, err = ramole("submit", dataset, "--job-id", "j", "--k", "2")
    assert (code, out) == (0, "j\n") and "submitted: 3 prompts in 1 shard\n" in err
    assert "1 bad line among them; first line 3: not JSON" in err
    (again,) = ramole.json("submit", dataset, "--job-id", "j", "--k", "2")
    assert again == {
        "job_id": "j",
        "created": False,
        "num_prompts": 3,
        "num_bad_lines": 1,
        "num_shards": 1,
        "first_bad_line": again["first_bad_line"],
    }
    code, out, err = ramole("submit", dataset, "--job-id", "j", "--json")
    assert code == 6 and json.loads(out)["error"]["code"] == "conflict"
    assert err.startswith("ramole: error: ") and err.count("\n") == 1


def test_strict_exits_2_and_names_file_line_and_reason(ramole: Ramole, dataset: str) -> None:
    code, out, err = ramole("submit", dataset, "--strict")
    assert code == 2 and not out and f"{dataset}: line 3: not JSON" in err


def test_wrong_usage_exits_2(ramole: Ramole, dataset: str) -> None:
    for args in (
        ("submit",),
        ("submit", dataset, "--gate", "best"),
        ("submit", dataset, "--k", "99"),
        ("submit", dataset, "--deadline", "never"),
        ("submit", dataset, "--base-only", "--adapter", "a"),
        ("submit", dataset, "--timeout", "1s"),
        ("search", ""),
        ("worker", "--foo"),
        ("worker", "foo"),
        ("adapters", "show", "a@b"),
        ("adapters", "show", "a@" + "1" * 5000),
        ("nonsense",),
    ):
        assert ramole(*args)[0] == 2, args
    assert ramole.json("submit", dataset, "--gate", "x")[-1]["error"]["code"] == "invalid_input"


def test_wait_exits_0_7_or_8(ramole: Ramole, world: World) -> None:
    world.client.submit(["a"], job_id="fine")
    assert ramole("wait", "fine", "--timeout", "1s")[0] == 8
    world.finish("fine")
    code, out, _ = ramole("wait", "fine")
    assert code == 0 and "completed" in out
    world.client.submit(["bad"], job_id="failed")
    world.finish("failed")
    code, out, err = ramole("wait", "failed", "--json")
    assert code == 7 and json.loads(out)["state"] == "failed" and "ramole results" in err


def test_submit_wait_ends_like_wait(ramole: Ramole, world: World, dataset: str) -> None:
    world.broker.on_send = lambda message: world.finish(message[1])
    submitted, status = ramole.json("submit", dataset, "--wait")
    assert submitted["created"] and status["state"] == "completed_with_failures"
    assert ramole("submit", dataset, "--wait")[0] == 7


def test_ctrl_c_leaves_the_job_running_and_says_so(
    ramole: Ramole, world: World, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(world.client, "wait", interrupted)
    for args in (("submit", dataset, "--job-id", "j", "--wait"), ("wait", "j")):
        code, _, err = ramole(*args)
        assert code == 130 and "job j runs on; `ramole status j`" in err


def test_status_and_jobs(ramole: Ramole, world: World) -> None:
    world.client.submit(["a"], job_id="j")
    assert "queued" in ramole("status", "j")[1]
    world.client.submit(["a", {}], job_id="spoilt")
    world.finish("spoilt")
    assert "failed   1 (1 bad line)\n" in ramole("status", "spoilt")[1]
    (status,) = ramole.json("status", "j")
    assert status["num_prompts"] == 1 and status["workers"] == 1
    assert [job["job_id"] for job in ramole.json("jobs")] == ["j", "spoilt"]
    assert ramole("jobs")[1].splitlines()[1].split()[:2] == ["j", "queued"]
    code, _, err = ramole("status", "nobody")
    assert code == 4 and "ramole jobs" in err


def test_a_job_that_cannot_be_read_is_a_warning_in_the_listing(
    ramole: Ramole, world: World
) -> None:
    world.client.submit(["a"], job_id="good")
    world.store.put(keys.manifest("bad"), b"{}")
    code, out, err = ramole("jobs", "--json")
    assert code == 0 and json.loads(out)["job_id"] == "good"
    assert err.startswith("warning: jobs/bad/manifest.json is not readable") and "{" not in err


def test_results_go_to_stdout_or_a_file_or_a_table(
    ramole: Ramole, world: World, tmp_path: Path
) -> None:
    world.client.submit(["a", "bad", "c"], job_id="j")
    assert ramole("results", "j")[0] == 2
    assert ramole("results", "j", "--partial")[:2] == (0, "")
    world.finish("j")
    code, out, _ = ramole("results", "j")
    assert code == 0 and [json.loads(line)["index"] for line in out.splitlines()] == [0, 1, 2]
    path = tmp_path / "answers.jsonl"
    assert ramole("results", "j", "--output", str(path))[:2] == (0, "")
    assert path.read_text() == out
    os.mkfifo(tmp_path / "pipe")
    for output, said in (
        (tmp_path / "nope" / "x", f"no folder {tmp_path / 'nope'}"),
        (tmp_path, "is not a file"),
        (tmp_path / "pipe", "is not a file"),
    ):
        code, out, err = ramole("results", "j", "--output", str(output))
        assert (code, out) == (2, "") and f"--output {output}: " in err and said in err
    assert ramole("results", "nobody", "--output", str(tmp_path / "y"))[0] == 4
    assert (
        list(tmp_path.rglob("*.part")) == []
        and not tmp_path.with_name(f"{tmp_path.name}.part").exists()
    )
    table = ramole("results", "j", "--format", "table")[1].splitlines()
    assert len(table) == 4 and "too long" in table[2]


def test_cancel_and_retry(ramole: Ramole, world: World) -> None:
    world.client.submit(["a"], job_id="j")
    assert "cancelled" in ramole("cancel", "j")[1]
    assert ramole("retry", "j")[:2] == (0, "j-retry-1\n")


def test_adapters_upload_list_remove(ramole: Ramole, world: World, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    samples = tmp_path / "s.jsonl"
    samples.write_text('"one"\n"two"\n')
    verdict(world, warnings=["odd"])
    args = ("adapters", "upload", str(folder), "--name", "n", "--samples", str(samples))
    assert ramole(*args) == (0, "accepted n@1\n", "warning: odd\n")
    assert ramole.json(*args)[0]["status"] == "accepted"
    error = {"code": "adapter_refused", "reason": "all_zero", "message": "B is zero"}
    verdict(world, status="refused", version=None, error=error)
    code, out, err = ramole(*args)
    assert (code, out) == (3, "") and "B is zero" in err
    registered(world, 1, "n", 1, "somebody")
    assert ramole("adapters", "list")[1].splitlines()[1].split()[:3] == ["n", "1", "active"]
    assert ramole("adapters", "remove", "n")[0] == 3
    assert ramole("adapters", "remove", "nobody@2")[0] == 4


def test_removing_an_adapter_again_says_so(
    ramole: Ramole, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.adapters._user", lambda: "me")
    registered(world, 1, "n", 1, "me")
    assert ramole("adapters", "remove", "n") == (0, "removed n@1\n", "")
    assert ramole("adapters", "remove", "n") == (0, "n was removed before\n", "")
    assert ramole.json("adapters", "remove", "n@1") == [{"removed": []}]


def test_an_excluded_name_that_no_adapter_has_is_warned_of(
    ramole: Ramole, world: World, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.adapters._user", lambda: "me")
    registered(world, 1, "gone", 1, "me")
    world.client.remove_adapter("gone")
    data = to_json({"adapters": [], "error": None})
    world.broker.on_send = lambda message: world.store.put(f"replies/{message[1]}.json", data)
    exclude = ("--exclude-adapter", "gone", "--exclude-adapter", "gnoe")
    for args in (("submit", dataset), ("search", "x")):
        code, _, err = ramole(*args, *exclude)
        assert code == 0 and "warning: --exclude-adapter gnoe: no adapter has that name\n" in err
        assert "adapter gone" not in err


def test_search(ramole: Ramole, world: World) -> None:
    found = [{"name": "a", "version": 1, "similarity": 0.5}]
    data = to_json({"adapters": found, "error": None})
    world.broker.on_send = lambda message: world.store.put(f"replies/{message[1]}.json", data)
    assert ramole.json("search", "x") == found
    assert ramole("search", "x")[1].splitlines()[1].split() == ["a", "1", "0.500"]


def test_logs_shows_the_lines_of_a_job_by_time(ramole: Ramole, world: World) -> None:
    folder = world.home / "logs"
    folder.mkdir()
    (folder / "worker-0.log").write_text(
        'no json about j\n{"time": "2", "job": "j"}\n{"time": "0", "job": "other", "m": "j"}\n'
    )
    (folder / "worker-1.log").write_text('{"time": "1", "job": "j"}\n')
    lines = ramole("logs", "j")[1].splitlines()
    assert [json.loads(line)["time"] for line in lines] == ["1", "2"]
    code, out, err = ramole("logs", "nojob")
    assert (code, out) == (4, "") and "no log line about job nojob" in err


def test_without_logs_it_says_where_they_are(ramole: Ramole) -> None:
    code, _, err = ramole("logs", "j")
    assert code == 4 and "in served mode they are where the workers run" in err


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("model", ["", "/models/tiny"])
def test_up_names_its_model_and_how_to_stop_it(
    given: bool, model: str, world: World, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    holder = Holder(pid=7, phase="ready", broker="unix://x", worker_pids=[8])
    monkeypatch.setattr("producer.commands.system.start_detached", lambda *args: holder)
    monkeypatch.setenv("RAMOLE_HOME", str(world.home))
    monkeypatch.setenv("RAMOLE_MODEL", model)
    home = ["--home", str(world.home)] if given else []
    assert console.main([*home, "up", "--detach"]) == 0
    ready, *notice = capfd.readouterr().out.splitlines()
    assert ready.startswith("ready: base model tiny, ")
    stop = f"ramole --home {world.home} down" if given else "ramole down"
    assert ready.endswith(f"; stop with `{stop}`")
    assert bool(notice) is not bool(model)
    assert all("demonstration model" in line and "RAMOLE_MODEL" in line for line in notice)


def test_doctor_names_what_is_missing(ramole: Ramole, world: World) -> None:
    code, out, _ = ramole("doctor")
    assert code == 5 and "FAIL  broker" in out and "ok    store" in out
    checks = {check["name"]: check for check in ramole.json("doctor")}
    assert not checks["broker"]["ok"] and "ramole up" in checks["broker"]["detail"]
    assert checks["base model"]["ok"] and not world.store.children("probes/")


class Stream:
    """A terminal, or not one."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals_only(terminal: bool) -> None:
    stream, now = Stream(terminal), iter([0.0, 0.0, 10.0])
    with ProgressLine(stream, now=lambda: next(now)) as line:  # type: ignore[arg-type]
        for done in (0, 50):
            line.show(
                JobStatus(
                    job_id="j", state=JobState.RUNNING, num_prompts=100, num_bad_lines=0,
                    num_done=done, num_ok=done, num_failed=0, num_shards=1, num_shards_done=0,
                    created_at="t",
                )
            )  # fmt: skip
    assert ("5.0 prompts/s, 10 s left" in stream.text) is terminal
    assert bool(stream.text) is terminal


@pytest.mark.parametrize(
    "words", [["up", "--timeout", "9s"], ["results", "j", "--format", "table", "--output", "x"]]
)
def test_an_option_that_would_have_no_effect_is_refused(words: list[str], ramole: Ramole) -> None:
    code, out, err = ramole(*words)
    assert (code, out) == (2, "") and words[-2] in err
