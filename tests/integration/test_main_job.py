"""The main job as its users do it: upload, submit, poll, read — on real components."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ramole_core import zoo
from ramole_core.errors import ConflictError
from ramole_core.jobs import JobState
from tests.integration.system import System, zoo_prompts
from tests.servers import wait_until


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_mixed_prompts_get_their_own_experts_and_the_right_answers(
    system: System, tmp_path: Path
) -> None:
    records = zoo_prompts(96)
    path = write_jsonl(
        tmp_path / "p.jsonl",
        [{"id": f"q{i}", "prompt": r["prompt"]} for i, r in enumerate(records)],
    )
    done = system.ramole("submit", str(path), "--max-new-tokens", "32", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    job_id = json.loads(done.stdout.splitlines()[0])["job_id"]
    lines = system.ramole("results", job_id).stdout.splitlines()
    results = [json.loads(line) for line in lines]
    assert [r["id"] for r in results] == [f"q{i}" for i in range(96)]
    right = sum(r["text"] == x["target"] for r, x in zip(results, records, strict=True))
    assert right >= 0.8 * 96  # the retriever is not trained
    for result, record in zip(results, records, strict=True):
        assert len(result["adapters"]) == 3
        assert abs(sum(a["weight"] for a in result["adapters"]) - 1) < 1e-4
        assert result["usage"]["prompt_tokens"] >= len(record["prompt"].encode())
    top1 = sum(
        r["adapters"][0]["name"] == x["adapter"] for r, x in zip(results, records, strict=True)
    )
    assert top1 >= 0.7 * 96


def test_one_bad_line_of_each_kind_in_a_thousand_leaves_999_answers(
    system: System, tmp_path: Path
) -> None:
    bad = {
        "broken JSON": b'{"prompt": "x"',
        "missing prompt": b'{"id": "1"}',
        "10 MB prompt": b'{"prompt": "' + b"x" * 10_000_000 + b'"}',
        "wrong type": b'{"prompt": 7}',
        "not UTF-8": b'{"prompt": "\xff\xfe"}',
    }
    good = [json.dumps({"prompt": zoo_prompts(1)[0]["prompt"]}).encode()] * 9
    path = tmp_path / "p.jsonl"
    lines = [line for spoilt in bad.values() for line in (*good, spoilt)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    job = system.client.submit(path, max_new_tokens=2, adapters=[])
    status = system.client.wait(job.job_id, 60)
    assert status.state is JobState.COMPLETED_WITH_FAILURES
    results = list(system.client.results(job.job_id))
    assert [r.index for r in results] == list(range(50))
    for number, kind in enumerate(bad):
        error = results[number * 10 + 9].error
        assert error is not None, kind
        assert error.code == "bad_line" and f"line {number * 10 + 10}:" in error.message, kind
    assert sum(r.error is None for r in results) == 45
    strict = system.ramole("submit", str(path), "--strict")
    assert strict.returncode == 2 and b"line 10" in strict.stderr
    assert len(strict.stderr.splitlines()) == 1


def test_leaving_the_own_adapter_out_works_for_a_job_and_for_a_prompt(system: System) -> None:
    record = zoo_prompts(1)[0]
    own = record["adapter"]
    job = system.client.submit([record["prompt"]], exclude_adapters=[own], max_new_tokens=4)
    system.client.wait(job.job_id, 60)
    assert own not in [a.name for a in next(system.client.results(job.job_id)).adapters]
    items = [record["prompt"], {"prompt": record["prompt"], "exclude_adapters": [own]}]
    job = system.client.submit(items, max_new_tokens=4)
    system.client.wait(job.job_id, 60)
    with_own, without = [[a.name for a in r.adapters] for r in system.client.results(job.job_id)]
    assert own == with_own[0] and own not in without


def test_messages_go_through_the_chat_template(system: System) -> None:
    record = zoo_prompts(1)[0]
    job = system.client.submit(
        [{"messages": [{"role": "user", "content": record["prompt"]}]}], max_new_tokens=8
    )
    system.client.wait(job.job_id, 60)
    result = next(system.client.results(job.job_id))
    assert result.error is None and result.adapters[0].name == record["adapter"]


def test_search_is_answered_by_a_worker(system: System) -> None:
    record = zoo_prompts(1)[0]
    found = system.ramole_json_lines("search", record["prompt"], "--k", "5")
    names = [match["name"] for match in found]
    assert len(names) == 5 and names[0] == record["adapter"]
    without = system.ramole_json_lines("search", record["prompt"], "--exclude-adapter", names[0])
    assert names[0] not in [match["name"] for match in without]


def test_a_nightly_submission_with_the_same_id_is_one_job(system: System, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "night.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    words = ["submit", str(path), "--job-id", "nightly-2026-01-31", "--max-new-tokens", "2"]
    first = system.ramole_json(*words)
    again = system.ramole_json(*words)
    assert first["created"] and not again["created"]
    assert first["job_id"] == again["job_id"] == "nightly-2026-01-31"
    system.client.wait("nightly-2026-01-31", 60)
    assert not system.ramole_json(*words)["created"]
    write_jsonl(path, [{"prompt": "one"}, {"prompt": "three"}])
    assert system.ramole(*words).returncode == ConflictError.exit_code
    assert len(list(system.client.results("nightly-2026-01-31"))) == 2


def test_sampled_answers_depend_on_the_seed_alone(system: System) -> None:
    prompt = zoo_prompts(3)[1]["prompt"]
    texts = []
    for company in (1, 7):
        items = [{"prompt": prompt, "seed": 5}, *[{"prompt": "filler"}] * company]
        job = system.client.submit(items, temperature=1.5, max_new_tokens=16)
        system.client.wait(job.job_id, 60)
        texts.append(next(system.client.results(job.job_id)).text)
    assert texts[0] == texts[1]


def test_a_new_adapter_is_seen_by_every_worker_within_five_seconds(
    system: System, tmp_path: Path
) -> None:
    samples = [f"Quack like duck number {i} of the zyzzyva pond" for i in range(20)]
    system.client.upload_adapter(zoo.adapter_path("count-form"), "fresh", samples)
    began = time.monotonic()
    try:
        prompts = ["Quack like duck number 3 of the zyzzyva pond"] * 64
        job = system.client.submit(prompts, shard_size=2, max_new_tokens=1)
        system.client.wait(job.job_id, 60)
        results = list(system.client.results(job.job_id))
        assert {r.adapters[0].name for r in results} == {"fresh"}
        wait_until(
            lambda: {system.client.search(prompts[0], k=1)[0].name for _ in range(4)} == {"fresh"},
            max(0.1, 5 - (time.monotonic() - began)),
            "all workers to see the adapter",
        )
    finally:
        system.client.remove_adapter("fresh")
    job = system.client.submit(["Quack like duck number 3"], max_new_tokens=1)
    system.client.wait(job.job_id, 60)
    assert "fresh" not in [a.name for a in next(system.client.results(job.job_id)).adapters]


def test_uploading_equal_content_again_changes_nothing(system: System) -> None:
    name = "count-form"
    before = system.ramole_json_lines("adapters", "list")
    again = system.client.upload_adapter(zoo.adapter_path(name), name, zoo.samples_path(name))
    assert again.status == "unchanged"
    assert system.ramole_json_lines("adapters", "list") == before


def test_a_cancelled_job_stops_and_keeps_what_is_finished(system: System) -> None:
    prompts = [record["prompt"] for record in zoo_prompts(200)] * 10
    job = system.client.submit(prompts, shard_size=8, max_new_tokens=64)
    wait_until(lambda: system.client.status(job.job_id).num_shards_done >= 1, 60, "a shard")
    done = system.ramole("cancel", job.job_id)
    assert done.returncode == 0, done.stderr
    status = system.client.wait(job.job_id, 30)
    assert status.state is JobState.CANCELLED
    kept = list(system.client.results(job.job_id, partial=True))
    assert 8 <= len(kept) < len(prompts)
    after = system.client.submit(["still alive"], max_new_tokens=1)
    assert system.client.wait(after.job_id, 30).state is JobState.COMPLETED


def test_retry_runs_the_failed_prompts_only(system: System) -> None:
    items = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y" * 9000}]
    job = system.client.submit(items, max_new_tokens=1)
    assert system.client.wait(job.job_id, 60).state is JobState.COMPLETED_WITH_FAILURES
    error = list(system.client.results(job.job_id))[1].error
    assert error is not None and error.code == "too_long" and "8192" in error.message
    again = system.client.retry(job.job_id)
    system.client.wait(again.job_id, 60)
    assert [r.id for r in system.client.results(again.job_id)] == ["b"]


def test_logs_show_the_lines_of_one_job(system: System) -> None:
    job = system.client.submit(["a line for the log"], max_new_tokens=1)
    system.client.wait(job.job_id, 60)
    lines = system.ramole("logs", job.job_id).stdout.splitlines()
    assert lines and all(json.loads(line)["job"] == job.job_id for line in lines)


def test_a_second_up_on_the_same_folder_names_the_first(system: System) -> None:
    done = system.ramole("up", timeout=30)
    holder = json.loads((system.settings.home / "supervisor.lock").read_text())["pid"]
    assert done.returncode == ConflictError.exit_code
    assert str(holder).encode() in done.stderr


def test_doctor_finds_everything_well(system: System) -> None:
    report = system.ramole_json_lines("doctor")
    assert report and all(check["ok"] for check in report), report


def test_unknown_and_foreign_messages_leave_the_worker_alive(system: System) -> None:
    from ramole_core import messages
    from worker.app import make_app

    app = make_app(system.settings)
    for name, args in [
        ("os.system", ["touch /tmp/never"]),
        ("celery.map", [{"task": messages.RUN_SHARD}, []]),
        (messages.RUN_SHARD, ["../../etc", "passwd"]),
        (messages.RUN_SHARD, ["no-such-job", "00000"]),
        (messages.START_JOB, [["a", "list"]]),
        (messages.REGISTER_ADAPTER, ["no-such-upload"]),
    ]:
        app.send_task(name, args=args, queue=messages.CONTROL_QUEUE, priority=5)
    job = system.client.submit(["after the noise"], max_new_tokens=1)
    assert system.client.wait(job.job_id, 60).state is JobState.COMPLETED
    assert not os.path.exists("/tmp/never")


@pytest.mark.parametrize("words", [["status", "no-such"], ["results", "no-such"], ["wait", "x"]])
def test_an_unknown_job_is_one_line_and_exit_code_4(system: System, words: list[str]) -> None:
    done = system.ramole(*words)
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1
