"""`ramole train`: flags to a request, and what comes back from the process, here a fake one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from producer import __main__ as console
from producer import training
from ramole_core.training import TrainReport, TrainRetriever, TrainRouter
from tests.unit.producer.world import World

REPORT = TrainReport(
    kind="router",
    version="router-3x8-1a2b3c4d",
    active=True,
    verdict="in use from the next job on",
    num_adapters=3,
    num_examples=30,
    num_parameters=75776,
    num_steps=40,
    stopped_by="patience",
    held_out_before=1.25,
    held_out_serving=1.125,
    held_out_after=0.5,
    seconds=90.0,
)


class Fake:
    """A process that notes its request, then does what `body` says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noted = folder / "request.json"
        self._script = folder / "fake.py"
        monkeypatch.setattr(training, "TRAIN_ARGV", (sys.executable, str(self._script)))
        self.does(f"print('noise'); print({REPORT.model_dump_json()!r})")

    def does(self, body: str) -> None:
        self._script.write_text(
            f"import os, sys, signal\nopen({str(self.noted)!r}, 'w').write(sys.argv[1])\n{body}\n"
        )

    @property
    def request(self) -> Any:
        return json.loads(self.noted.read_text())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


@pytest.fixture
def ramole(world: World, capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = console.main(["--home", str(world.home), *args])
        return (code, *capfd.readouterr())

    return run


def test_without_flags_the_request_has_the_defaults(ramole: Any, fake: Fake) -> None:
    assert ramole("train", "router", "--data", "d.jsonl")[0] == 0
    assert TrainRouter.model_validate_json(fake.noted.read_text()) == TrainRouter(data="d.jsonl")
    assert ramole("train", "retriever")[0] == 0
    assert TrainRetriever.model_validate_json(fake.noted.read_text()) == TrainRetriever()


def test_every_flag_reaches_the_request(ramole: Any, fake: Fake) -> None:
    words = "--seed 7 --rank 4 --no-prior --candidates 3 --dropout 0.25 --steps 9 --batch-size 2"
    words += " --learning-rate 0.01 --dry-run --activate never --adapters a,b --adapters c"
    assert ramole("train", "router", "--data", "d", *words.split())[0] == 0
    assert fake.request == {
        "kind": "router", "adapters": ["a", "b", "c"], "data": "d", "seed": 7, "rank": 4,
        "prior": False, "candidates": 3, "dropout": 0.25, "steps": 9, "batch_size": 2,
        "learning_rate": 0.01, "activate": "never", "dry_run": True,
    }  # fmt: skip
    words = "--fraction 0.4 --seed 1 --data d --exclude x,y --steps 5 --dry-run --activate always"
    words += " --neighbours 3"
    assert ramole("train", "retriever", *words.split())[0] == 0
    assert fake.request == {
        "kind": "retriever", "fraction": 0.4, "seed": 1, "data": "d", "exclude": ["x", "y"],
        "steps": 5, "activate": "always", "dry_run": True, "neighbours": 3,
    }  # fmt: skip


def test_the_report_is_json_or_a_table(ramole: Any, fake: Fake) -> None:
    code, out, _ = ramole("train", "router", "--data", "d", "--json")
    assert code == 0 and TrainReport.model_validate_json(out) == REPORT
    _, out, _ = ramole("train", "router", "--data", "d")
    assert out.splitlines() == [
        "version   router-3x8-1a2b3c4d",
        "data      30 examples of 3 adapters",
        "learning  75776 parameters, 40 steps",
        "time      1.5 minutes",
        "held-out  loss 1.250 before, 1.125 in use so far, 0.500 after",
        "verdict   in use from the next job on",
    ]
    dry = REPORT.model_copy(update={"version": None, "held_out_before": None})
    fake.does(f"print({dry.model_dump_json()!r})")
    assert "time      about 1.5 minutes" in ramole("train", "router", "--data", "d")[1]


def test_a_failure_speaks_once_and_its_exit_code_is_passed_on(ramole: Any, fake: Fake) -> None:
    error = '{"error": {"code": "invalid_input", "message": "line 3"}}'
    fake.does(f"print('ramole: error: line 3', file=sys.stderr); print({error!r}); sys.exit(2)")
    assert ramole("train", "router", "--data", "d") == (2, "", "ramole: error: line 3\n")
    code, out, err = ramole("train", "router", "--data", "d", "--json")
    assert (code, out, err) == (2, error + "\n", "ramole: error: line 3\n")


def test_a_killed_process_is_one_line(ramole: Any, fake: Fake) -> None:
    fake.does("os.kill(os.getpid(), signal.SIGKILL)")
    code, out, err = ramole("train", "router", "--data", "d")
    assert (code, out) == (5, "") and len(err.splitlines()) == 1
    assert "killed by signal 9" in err and "nothing was changed" in err


@pytest.mark.parametrize("words", [["--rank", "0"], ["--batch-size", "x"], ["--dropout", "1"]])
def test_a_bad_flag_is_named_and_starts_nothing(ramole: Any, fake: Fake, words: list[str]) -> None:
    code, _, err = ramole("train", "router", "--data", "d", *words)
    assert code == 2 and words[0] in err
    assert not fake.noted.exists()


def test_a_data_folder_that_does_not_exist_is_said(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.main(["--home", str(tmp_path / "no"), "train", "retriever"]) == 5
    assert "does not exist" in capsys.readouterr().err and not fake.noted.exists()
