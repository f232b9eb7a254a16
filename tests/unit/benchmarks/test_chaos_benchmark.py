"""The judge of the chaos benchmark finds what it is there to find."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.cuts import DirectoryCut
from benchmarks.chaos.faults import Strike
from benchmarks.chaos.load import JobPlan, job_plans
from benchmarks.chaos.pool import MOVER, Expected, digest, essence, make_records
from benchmarks.chaos.recovery import Life, Recovery, recoveries
from benchmarks.chaos.rehearsal import Outcome
from benchmarks.chaos.rows import rows_of
from benchmarks.chaos.script import LASTS, ROUND, script
from benchmarks.chaos.verdict import Judge, Verdict
from ramole_core import keys
from ramole_core.errors import RamoleError
from ramole_core.jobs import AdapterUse, ErrorRecord, Finished, PromptRequest, PromptResult
from ramole_core.store.directory import DirectoryStore
from tests.unit.worker.world import put_job

JOB = "chaos-00000"
RIGHT = [
    PromptResult(index=0, text="a", finish_reason="stop"),
    PromptResult(index=1, text="b", finish_reason="stop"),
    PromptResult(index=2, text="c", finish_reason="stop"),
]
PLAN = JobPlan(JOB, (0, 1, 2), "normal", 2, None)


def lines_of(results: list[PromptResult]) -> bytes:
    return "".join(r.model_dump_json() + "\n" for r in results).encode()


def judged(
    tmp_path: Path,
    *shards: list[PromptResult],
    cancelled: bool = False,
    by_us: bool = True,
    seen: bytes = b"",
) -> Verdict:
    """Of a job of three prompts, two to a shard, that ended with these outputs; whether the load
    cancelled it, and what the first output was when it was first seen."""
    store = DirectoryStore(tmp_path / "store")
    put_job(store, JOB, [PromptRequest(index=i, prompt="p") for i in range(3)], shard_size=2)
    for number, results in enumerate(shards):
        store.create(keys.output_shard(JOB, f"{number:05d}"), lines_of(results))
    end = keys.cancelled(JOB) if cancelled else keys.finished(JOB)
    final = Finished(finished_at="2026-01-01T00:00:00+00:00", num_ok=3, num_failed=0)
    store.put(end, final.model_dump_json().encode())
    judge = Judge(store, Expected({None: [essence(r, None) for r in RIGHT]}, 1.0))
    first = {keys.output_shard(JOB, "00000"): digest(seen)} if seen else {}
    judge.judge(replace(PLAN, cancel_after=1.0 if by_us else None), first)
    return judge.verdict


def test_a_whole_job_is_whole(tmp_path: Path) -> None:
    verdict = judged(tmp_path, RIGHT[:2], RIGHT[2:])
    assert verdict == Verdict(prompts=3, results=3)


def test_what_is_missing_or_failed_is_lost(tmp_path: Path) -> None:
    failed = PromptResult(index=0, error=ErrorRecord(code="worker_lost", message="x"))
    verdict = judged(tmp_path, [failed, RIGHT[1]])
    assert (verdict.lost, verdict.doubled, verdict.wrong, verdict.miscounted) == (2, 0, 0, 1)


def test_a_second_result_is_doubled(tmp_path: Path) -> None:
    verdict = judged(tmp_path, RIGHT[:2], [*RIGHT[2:], RIGHT[0]])
    assert (verdict.lost, verdict.doubled, verdict.wrong) == (0, 1, 0)


def test_an_output_that_is_no_shards_is_doubled(tmp_path: Path) -> None:
    verdict = judged(tmp_path, RIGHT[:2], RIGHT[2:], [])
    assert (verdict.lost, verdict.doubled) == (0, 1)


def test_an_output_that_was_another_before_is_doubled(tmp_path: Path) -> None:
    for number, seen in enumerate((lines_of(RIGHT[:2]), b"other")):
        verdict = judged(tmp_path / str(number), RIGHT[:2], RIGHT[2:], seen=seen)
        assert (verdict.lost, verdict.doubled, verdict.wrong) == (0, number, 0)


def test_a_job_that_is_gone_is_lost(tmp_path: Path) -> None:
    judge = Judge(DirectoryStore(tmp_path), Expected({None: []}, 1.0))
    judge.judge(PLAN, {})
    assert judge.verdict.lost == 3


def test_another_text_is_wrong(tmp_path: Path) -> None:
    other = RIGHT[2].model_copy(update={"text": "d"})
    assert judged(tmp_path, RIGHT[:2], [other]).wrong == 1


def test_a_cancelled_job_loses_only_what_was_not_cancelled(tmp_path: Path) -> None:
    cut = PromptResult(index=1, error=ErrorRecord(code="cancelled", message="x"))
    verdict = judged(tmp_path, [RIGHT[0], cut], cancelled=True)
    assert (verdict.lost, verdict.cancelled) == (0, 2)
    died = PromptResult(index=1, error=ErrorRecord(code="worker_lost", message="x"))
    assert judged(tmp_path / "died", [RIGHT[0], died], RIGHT[2:], cancelled=True).lost == 1
    assert judged(tmp_path / "stray", cancelled=True, by_us=False).lost == 3


def test_an_answer_by_another_version_than_the_pinned_is_another() -> None:
    use = AdapterUse(name=MOVER, version=2, similarity=0.5, weight=1.0)
    result = PromptResult(index=0, text="a", finish_reason="stop", adapters=(use,))
    assert essence(result, 2) != essence(result, 1)


def test_recovery_counts_from_every_strike_that_met_a_shard() -> None:
    shards = {
        ("j", "0"): Life(0.0, 30.0),
        ("j", "1"): Life(0.0, 12.0),
        ("j", "2"): Life(25.0, 26.0),
    }
    strikes = [Strike("redis_wipe", 20.0, None), Strike("worker_kill", 5.0, frozenset(shards))]
    assert recoveries(strikes, shards, undisturbed=1.0) == [
        Recovery("redis_wipe", (9.0,), ()),
        Recovery("worker_kill", (6.0,), (24.0,)),
    ]


def outcome(**changes: Any) -> Outcome:
    found = Outcome(
        verdict=Verdict(prompts=500, results=500),
        struck={"worker_kill": 2},
        recoveries=[Recovery("worker_kill", (6.0, 8.0), (24.0,))],
        num_jobs=20,
        not_ended=set(),
        longest_shard=9.0,
        drained=1.0,
    )
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"verdict": Verdict()}, {"results"}),
        ({"not_ended": {"j"}}, {"jobs_without_end"}),
        ({"recoveries": []}, {"recoveries_not_measured"}),
        ({"recoveries": [Recovery("worker_kill", (), (3.0,))]}, {"recoveries_not_measured"}),
        ({"recoveries": [Recovery("worker_kill", (21.0,), ())]}, {"recovery_worker_kill_max"}),
    ],
)
def test_what_was_not_put_to_the_test_is_not_met(changes: Any, missed: set[str]) -> None:
    assert {row.name for row in rows_of(outcome(**changes)) if row.met is False} == missed


def test_script_and_jobs_come_from_the_seed_alone() -> None:
    faults = script(5, 600.0, 40)
    assert faults == script(5, 600.0, 40) != script(6, 600.0, 40)
    assert [f.at for f in faults] == sorted(f.at for f in faults)
    assert {f.kind for f in faults} == set(ROUND)
    assert all((f.seconds > 0) == (f.kind in LASTS) for f in faults)
    first = list(islice(job_plans(5, 100), 50))
    assert first == list(islice(job_plans(5, 100), 50)) != list(islice(job_plans(6, 100), 50))
    assert len({plan.job_id for plan in first}) == 50
    assert any(plan.cancel_after is not None for plan in first)


def test_records_are_greedy_and_sampled() -> None:
    records = make_records()
    assert {"seed" in record for record in records} == {True, False}


def test_a_store_that_is_cut_is_whole_again(tmp_path: Path) -> None:
    store, cut = DirectoryStore(tmp_path / "store"), DirectoryCut(tmp_path / "store")
    store.put("a/b", b"x")
    cut.cut()
    with pytest.raises(RamoleError):
        store.get("a/b")
    with pytest.raises(RamoleError):
        store.put("a/c", b"y")
    cut.mend()
    cut.mend()
    assert [entry.key for entry in store.entries("")] == ["a/b"]
