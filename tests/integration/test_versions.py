"""Encoders are switched under a running system; every job is answered with the one it pins."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ramole_core import zoo
from ramole_core.adapters.samples import read_samples
from ramole_core.job_files import JobFiles
from ramole_core.jobs import JobState, PromptResult
from ramole_core.retrieval.encoder import PACKAGED, Encoder, adapter_vector
from ramole_core.retrieval.encoder_store import store_encoder
from tests.integration.system import System, kill, running_system
from tests.servers import wait_until
from tests.tiny_encoder import encoder_card, projected_packaged_model

NAMES = ("reverse-zoo", "swap-spy", "upper-waiter", "spell-radio")
PROMPTS = [
    "Write the zoo animal 'raven' backwards.",
    "The waiter shouts the food 'taco' in capital letters.",
    "Secret spy code: swap the first and last letter of 'sculptor'.",
]
NEW_TAU = 0.2


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One worker that looks for new versions often."""
    home = tmp_path_factory.mktemp("versions")
    with running_system(home, RAMOLE_TORCH_THREADS="1", RAMOLE_REGISTRY_SECONDS="0.1") as found:
        found.upload_zoo(*NAMES)
        yield found


@pytest.fixture(scope="module")
def encoders(system: System, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Encoder]:
    """(the one the system started with, a stored one of another width)."""
    old = Encoder.load(PACKAGED)
    folder = projected_packaged_model(tmp_path_factory.mktemp("model"))
    card = encoder_card("projected", trained_from=old.version, tau=NEW_TAU)
    store_encoder(system.client.store, folder, card)
    return old, Encoder.open(folder, card)


def submitted(system: System) -> str:
    return system.client.submit(PROMPTS, k=len(NAMES), max_new_tokens=2).job_id


def answers(system: System, job_id: str) -> list[PromptResult]:
    assert system.client.wait(job_id, 60).state is JobState.COMPLETED
    return list(system.client.results(job_id))


def pinned(system: System, job_id: str) -> str:
    return JobFiles(system.client.store, job_id).manifest().pins.encoder


def check_answered_with(encoder: Encoder, tau: float, results: list[PromptResult]) -> None:
    """Every similarity is of vectors that this encoder alone made, every weight of its tau."""
    vectors = {
        name: adapter_vector(encoder.encode(read_samples(zoo.samples_path(name)))) for name in NAMES
    }
    for result, query in zip(results, encoder.encode(PROMPTS), strict=True):
        found = {use.name: use.similarity for use in result.adapters}
        wanted = {name: float(np.dot(query, vector)) for name, vector in vectors.items()}
        assert found == pytest.approx(wanted, abs=1e-3)
        powers = [math.exp((use.similarity or 0.0) / tau) for use in result.adapters]
        assert [use.weight for use in result.adapters] == pytest.approx(
            [power / sum(powers) for power in powers], abs=1e-3
        )


def in_use(system: System) -> list[str]:
    return [r["version"] for r in system.ramole_json_lines("encoders", "list") if r["in_use"]]


def test_a_switch_and_its_rollback_while_jobs_run(
    system: System, encoders: tuple[Encoder, Encoder]
) -> None:
    old, new = encoders
    assert in_use(system) == [old.version]
    before = system.client.search(PROMPTS[0], k=1)
    first = submitted(system)
    active = system.ramole_json("encoders", "use", "projected")
    assert active == {"encoder": "projected", "router": None}
    second = submitted(system)  # before any worker has followed
    assert (pinned(system, first), pinned(system, second)) == (old.version, "projected")
    check_answered_with(old, 0.05, answers(system, first))
    check_answered_with(new, NEW_TAU, answers(system, second))
    wait_until(lambda: system.client.search(PROMPTS[0], k=1) != before, 30, "the switch")
    assert "encoder projected is in use now" in system.logs()

    assert system.ramole_json("encoders", "rollback")["encoder"] == old.version
    third = submitted(system)
    system.client.use_encoder("projected")
    fourth = submitted(system)
    check_answered_with(old, 0.05, answers(system, third))
    check_answered_with(new, NEW_TAU, answers(system, fourth))

    system.client.rollback_encoder()
    wait_until(lambda: system.client.search(PROMPTS[0], k=1) == before, 30, "the way back")
    assert in_use(system) == [old.version]


def test_an_encoder_that_cannot_be_loaded_changes_nothing_but_the_jobs_that_pin_it(
    system: System, encoders: tuple[Encoder, Encoder], tmp_path: Path
) -> None:
    store, client = system.client.store, system.client
    before = client.search(PROMPTS[0], k=1)
    folder = projected_packaged_model(tmp_path / "model", seed=1)
    store_encoder(store, folder, encoder_card("damaged"))
    store.put("encoders/damaged/model/modules.json", b"[]")
    client.use_encoder("damaged")
    job = submitted(system)
    client.rollback_encoder()
    assert client.wait(job, 60).state is JobState.FAILED
    codes = {result.error.code for result in client.results(job) if result.error}
    assert codes == {"encoder_unavailable"}
    assert client.search(PROMPTS[0], k=1) == before
    check_answered_with(encoders[0], 0.05, answers(system, submitted(system)))
    report = {check["name"]: check for check in system.ramole_json_lines("doctor")}
    assert report["encoder"]["ok"] and report["router"]["ok"]


def test_a_worker_that_starts_later_loads_what_is_in_use(
    system: System, encoders: tuple[Encoder, Encoder]
) -> None:
    old, new = encoders
    system.client.use_encoder("projected")
    kill(system.worker_pids()[0])
    first = submitted(system)
    check_answered_with(new, NEW_TAU, answers(system, first))
    system.client.rollback_encoder()
    check_answered_with(old, 0.05, answers(system, submitted(system)))
