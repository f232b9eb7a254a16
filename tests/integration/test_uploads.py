"""The gate end to end: bad uploads by the command line and past it, good ones of every kind."""

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from producer.polling import poll
from ramole_core import keys, messages, zoo
from ramole_core.adapters.verdict import Verdict, read_verdict
from ramole_core.errors import AdapterRefusedError
from tests.adapters_corpus import GOOD_KINDS, make_good, stage_raw
from tests.bad_adapters import BAD_CASES, FOLDER_ONLY, make_bad
from tests.integration.system import System

# One per rule, as a user would meet them.
BY_COMMAND = (
    "pickle_beside", "pickle_renamed", "symlink", "not_lora", "unknown_layer", "path_in_a_name",
    "nan", "all_b_zero", "rank_over_limit", "dora", "bias", "modules_to_save", "unknown_key",
    "header_longer_than_file", "gzip_as_weights", "fifo_as_config", "weights_sparse",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(zoo.base_path(), dtype=torch.float32)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    path.write_text("".join(json.dumps(f"sample {i} of a gate test") + "\n" for i in range(5)))
    return path


def names(system: System) -> set[str]:
    return {row.name for row in system.client.adapters(with_removed=True)}


@pytest.mark.parametrize("case", BY_COMMAND)
def test_the_command_line_refuses_with_the_reason(
    case: str, system: System, model: nn.Module, samples: Path, tmp_path: Path
) -> None:
    reason = make_bad(tmp_path / "adapter", case, model)
    before = names(system)
    done = system.ramole(
        "adapters", "upload", str(tmp_path / "adapter"), "--name", "evil",
        "--samples", str(samples), "--json",
    )  # fmt: skip
    assert done.returncode == AdapterRefusedError.exit_code, done.stderr
    assert json.loads(done.stdout)["error"]["reason"] == reason
    plain = system.ramole(
        "adapters", "upload", str(tmp_path / "adapter"), "--name", "evil", "--samples", str(samples)
    )
    assert len(plain.stderr.decode().splitlines()) == 1 and plain.stdout == b""
    assert names(system) == before


def test_every_bad_adapter_put_past_the_gate_is_refused_by_the_worker(
    system: System, model: nn.Module, samples: Path, tmp_path: Path
) -> None:
    client = system.client
    before = names(system)
    wanted: dict[str, str] = {}
    for number, case in enumerate(sorted(set(BAD_CASES) - FOLDER_ONLY)):
        folder = tmp_path / case
        reason = make_bad(folder, case, model)
        upload_id = f"evil-{number}"
        stage_raw(client.store, folder, samples.read_bytes(), "evil", "me", upload_id)
        client.broker.send(messages.REGISTER_ADAPTER, upload_id)
        wanted[upload_id] = reason

    def verdicts() -> dict[str, Verdict] | None:
        found = {u: read_verdict(client.store, u) for u in wanted}
        return None if None in found.values() else found  # type: ignore[return-value]

    found = poll(verdicts, 60)
    assert found is not None, "some upload got no verdict"
    got = {u: v.error.reason if v.error else v.status for u, v in found.items()}
    assert got == wanted
    assert len(wanted) >= 12
    assert names(system) == before
    staged = poll(lambda: None if client.store.children(keys.STAGING) else True, 10)
    assert staged, "refused uploads are cleared"


def test_a_staged_upload_whose_message_was_lost_gets_its_verdict_all_the_same(
    system: System, model: nn.Module, samples: Path, tmp_path: Path
) -> None:
    make_bad(tmp_path / "a", "dora", model)
    stage_raw(system.client.store, tmp_path / "a", samples.read_bytes(), "evil", "me", "lost-1")
    found = poll(lambda: read_verdict(system.client.store, "lost-1"), 60)
    assert found is not None and found.error is not None and found.error.reason == "dora"


def test_good_adapters_of_every_supported_kind_pass_and_answer(
    system: System, model: nn.Module, samples: Path, tmp_path: Path
) -> None:
    assert len(GOOD_KINDS) >= 20
    client = system.client
    texts = [json.loads(line) for line in samples.read_text().splitlines()]
    kinds = {f"good-{kind.replace('_', '-')}": kind for kind in GOOD_KINDS}

    def upload(name: str, kind: str) -> None:
        make_good(tmp_path / kind, kind, model)
        (tmp_path / kind / "README.md").unlink(missing_ok=True)
        client.upload_adapter(tmp_path / kind, name, texts)

    try:
        for name, kind in kinds.items():
            upload(name, kind)
        items = [
            {"prompt": "hello", "adapters": [{"name": name}], "max_new_tokens": 2} for name in kinds
        ]
        job = client.submit(items)
        client.wait(job.job_id, 60)
        results = list(client.results(job.job_id))
        assert [r.error for r in results] == [None] * len(kinds)
        assert [r.adapters[0].name for r in results] == list(kinds)
    finally:
        for name in names(system) & set(kinds):
            client.remove_adapter(name)


def test_two_uploads_of_one_name_at_once_become_two_versions(
    system: System, model: nn.Module, tmp_path: Path
) -> None:
    for number in (1, 2):
        make_good(tmp_path / str(number), "list", model, seed=number)
        (tmp_path / str(number) / "README.md").unlink(missing_ok=True)
    versions: list[int | None] = []

    def upload(number: int) -> None:
        found = system.client.upload_adapter(tmp_path / str(number), "raced", ["a sample"])
        versions.append(found.version)

    threads = [threading.Thread(target=upload, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert sorted(versions, key=str) == [1, 2]
    finally:
        system.client.remove_adapter("raced")
