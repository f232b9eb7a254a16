"""`ramole train` as its users run it: real processes on a real store."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramole_core import keys, zoo
from ramole_core.job_files import JobFiles
from ramole_core.jobs import JobState
from ramole_core.mole.card import CARD_FILE, RouterCard
from ramole_core.store.directory import DirectoryStore
from ramole_core.training import TrainReport
from tests.integration.system import RAMOLE, System, zoo_prompts
from tests.servers import wait_until
from tests.zoo_store import (
    NAMES,
    contents,
    make_zoo_store,
    one_sided_records,
    records,
    write_records,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder on which no system runs."""
    home = tmp_path_factory.mktemp("zoo")
    make_zoo_store(home)
    return home


@pytest.fixture
def store(folder: Path) -> DirectoryStore:
    return DirectoryStore.from_location(str(folder / "store"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_records(tmp_path / "data.jsonl", records()))


class Training:
    """`ramole train router` in the background, its stderr in a file."""

    def __init__(self, home: Path, notes: Path, *words: str) -> None:
        self._err = notes / "err"
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAMOLE_")}
        env |= {"RAMOLE_HOME": str(home), "RAMOLE_TORCH_THREADS": "1"}
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*RAMOLE, "train", "router", *words],
                env=env, stdout=subprocess.PIPE, stderr=err, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._err.read_text()

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out.decode()


@pytest.fixture
def endless(folder: Path, data: str, tmp_path: Path) -> Iterator[Training]:
    """A training that is under way and would take hours."""
    found = Training(folder, tmp_path, "--data", data, "--no-prior", "--steps", "1000000")
    try:
        wait_until(lambda: "training:" in found.said, 60, "the training to begin")
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def test_a_router_is_trained_with_the_prior_of_the_packaged_encoder(
    folder: Path, store: DirectoryStore, data: str, tmp_path: Path
) -> None:
    words = ("--data", data, "--steps", "2", "--batch-size", "4", "--activate", "never", "--json")
    training = Training(folder, tmp_path, *words)
    code, out = training.end()
    assert code == 0, training.said
    report = TrainReport.model_validate_json(out)
    assert report.version and report.num_examples == len(records())
    card = RouterCard.model_validate_json(store.get(keys.router(report.version) + CARD_FILE))
    assert card.encoder is not None and card.encoder.startswith("all-MiniLM-L6-v2")


def test_ctrl_c_ends_it_with_its_process_and_changes_nothing(
    store: DirectoryStore, endless: Training
) -> None:
    before = contents(store)
    os.killpg(endless.process.pid, signal.SIGINT)  # as a terminal does
    code, out = endless.end()
    assert (code, out) == (130, "")
    last = endless.said.strip().splitlines()[-1]
    assert last.startswith("ramole: interrupted: nothing was changed")
    assert "Traceback" not in endless.said
    assert contents(store) == before


def test_a_command_that_is_killed_takes_its_process_along(
    store: DirectoryStore, endless: Training
) -> None:
    before = contents(store)
    endless.process.kill()
    wait_until(lambda: "nothing was changed" in endless.said, 30, "the process to end")
    assert contents(store) == before


def test_bad_data_is_one_line(folder: Path, tmp_path: Path) -> None:
    path = write_records(tmp_path / "bad.jsonl", [*records(), {"prompt": "p"}])
    training = Training(folder, tmp_path, "--data", str(path))
    code, out = training.end()
    assert (code, out) == (2, "")
    assert training.said.startswith("ramole: error: --data: line 31:")
    assert len(training.said.splitlines()) == 1


def test_a_trained_router_answers_the_jobs_after_it(system: System, tmp_path: Path) -> None:
    path = write_records(tmp_path / "data.jsonl", one_sided_records())
    words = ["--data", str(path), "--no-prior", "--steps", "10", "--learning-rate", "0.01"]
    words += ["--dropout", "0", "--adapters", ",".join(NAMES)]
    found: Any = system.ramole_json("train", "router", *words)
    assert found["active"] and found["held_out_after"] < found["held_out_before"]
    try:
        job = system.client.submit(
            [record["prompt"] for record in zoo_prompts(8)], gate="mole-plain", max_new_tokens=4
        )
        assert system.client.wait(job.job_id, 60).state is JobState.COMPLETED
        for result in system.client.results(job.job_id):
            assert abs(sum(a.weight for a in result.adapters) - 1) < 1e-3
    finally:
        assert system.ramole("routers", "rollback").returncode == 0


def test_a_trained_retriever_answers_the_jobs_after_it(system: System) -> None:
    words = ["--steps", "1", "--neighbours", "1", "--activate", "always"]
    found: Any = system.ramole_json("train", "retriever", *words)
    assert found["active"] and found["num_adapters"] == len(zoo.adapter_names())
    try:
        prompts = [record["prompt"] for record in zoo_prompts(8)]
        job = system.client.submit(prompts, max_new_tokens=4)
        assert system.client.wait(job.job_id, 90).state is JobState.COMPLETED
        assert JobFiles(system.client.store, job.job_id).manifest().pins.encoder == found["version"]
        assert all(len(result.adapters) == 3 for result in system.client.results(job.job_id))
    finally:
        assert system.ramole("encoders", "rollback").returncode == 0
