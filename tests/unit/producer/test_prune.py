"""Retention: what goes, what stays, and that a removal may be cut at any store call."""

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from producer.prune import Pruned, PrunedJob, Pruner, temporary_files
from ramole_core import keys
from ramole_core.errors import ConflictError, NotFoundError
from ramole_core.job_files import JobFiles
from ramole_core.jobs import Finished, utc_now
from ramole_core.store import ObjectStore
from ramole_core.store.base import to_json
from ramole_core.store.directory import DirectoryStore
from tests.unit.producer.test_commands import Ramole, ramole
from tests.unit.producer.world import Cut, CutStore, World

__all__ = ["ramole"]

HOUR = 3600.0
DAY = 24 * HOUR
MONTH = 30 * DAY


def now() -> float:
    return utc_now().timestamp()


def iso(ago_seconds: float) -> str:
    return (utc_now() - datetime.timedelta(seconds=ago_seconds)).isoformat()


def age(world: World, ago_seconds: float, prefix: str = "") -> None:
    """Makes every object below the prefix that old."""
    time = now() - ago_seconds
    found = world.keys()
    for key in found:
        if key.startswith(prefix):
            os.utime(world.home / "store" / key, (time, time))


def put_job(world: World, job_id: str, finished: float = 0, cancelled: float = 0) -> None:
    """A job with outputs, attempts and deaths; `finished`, `cancelled`: seconds ago, 0: not."""
    world.client.submit(["a", "b", "c"], job_id=job_id, shard_size=2)
    world.answer(job_id, num_shards=2 if finished else 1)
    world.store.put(keys.attempt(job_id, "00000", 1), b"{}")
    world.store.put(keys.death(job_id, 1, "beside-w"), b"{}")
    if finished:
        final = Finished(finished_at=iso(finished), num_ok=3, num_failed=0)
        world.store.create(keys.finished(job_id), final.model_dump_json().encode())
        world.store.delete(keys.live(job_id))
    if cancelled:
        world.store.create(keys.cancelled(job_id), to_json({"cancelled_at": iso(cancelled)}))
        world.store.put(keys.cancelling(job_id), b"")


def jobs_in(world: World) -> list[str]:
    return world.store.children(keys.JOBS)


def test_jobs_that_ended_long_ago_go_and_the_others_stay(world: World) -> None:
    put_job(world, "old", finished=31 * DAY)
    put_job(world, "old-cancelled", cancelled=31 * DAY)
    put_job(world, "late-end", finished=40 * DAY, cancelled=10 * DAY)
    put_job(world, "young", finished=29 * DAY)
    put_job(world, "open")
    age(world, 90 * DAY)
    rows: list[PrunedJob] = []
    total = world.client.prune(MONTH, on_job=rows.append)
    assert jobs_in(world) == ["late-end", "open", "young"]
    assert [row.job_id for row in rows] == ["old", "old-cancelled"]
    assert total.num_jobs == 2 and total.num_markers == 3
    objects = sum(row.num_objects for row in rows)
    assert (total.num_objects, total.size_bytes) == (
        objects + 3,
        sum(row.size_bytes for row in rows),
    )
    left = world.keys()
    assert not [key for key in left if "/old" in key] and keys.live("open") in left
    assert world.client.status("young").state.ended and not world.client.status("open").state.ended
    assert [r.index for r in world.client.results("young")] == [0, 1, 2]
    assert world.client.prune(MONTH) == Pruned(dry_run=False)


def test_a_dry_run_reports_the_same_and_removes_nothing(world: World) -> None:
    put_job(world, "old", finished=31 * DAY)
    world.store.put(keys.reply("r"), b"{}")
    age(world, 31 * DAY)
    before = world.keys()
    shown = world.client.prune(MONTH, dry_run=True)
    assert world.keys() == before
    assert world.client.prune(MONTH) == shown.model_copy(update={"dry_run": False})
    assert not world.keys()


def test_a_cancelled_job_stays_for_a_day(world: World) -> None:
    put_job(world, "j", cancelled=HOUR)
    put_job(world, "f", finished=HOUR)
    world.client.prune(60)
    assert jobs_in(world) == ["j"], "workers remember a cancelled id for a day"


@pytest.mark.parametrize(
    "record",
    [
        b"oops",
        b'{"finished_at": "soon"}',
        b"[]",
        b"{}",
        pytest.param(b"[" * 200_000, id="deep"),
        b'{"finished_at": "0001-01-01T00:00:00+14:00"}',
        b'{"finished_at": "9999-12-31T23:59:59-14:00"}',
    ],
)
def test_a_job_whose_end_cannot_be_read_stays(record: bytes, world: World) -> None:
    put_job(world, "j")
    world.store.create(keys.finished("j"), record)
    age(world, 90 * DAY)
    assert world.client.prune(0).num_jobs == 0 and JobFiles(world.store, "j").find_manifest()


def leftovers(world: World) -> dict[str, str]:
    """One object of each kind that a cut may leave; key -> the counter of its kind."""
    found = {
        keys.input_shard("cut", "s1", "00000"): "num_submissions",
        keys.staging("half") + "adapter_config.json": "num_uploads",
        keys.staging("judged") + "upload.json": "num_uploads",
        keys.request("q"): "num_messages",
        keys.reply("q"): "num_messages",
        keys.reply("judged"): "num_messages",
        f"{keys.PROBES}p": "num_messages",
        keys.live("gone"): "num_markers",
        keys.cancelling("gone"): "num_markers",
    }
    for key in found:
        world.store.put(key, b"{}")
    return found


def test_what_cuts_left_goes_when_it_is_old(world: World) -> None:
    found = leftovers(world)
    world.store.put(keys.staging("waiting") + "upload.json", b"{}")
    put_job(world, "open")
    stays = sorted(set(world.keys()) - set(found))
    age(world, 20 * HOUR)
    assert world.client.prune(0) == Pruned(dry_run=False), "a day at least"
    age(world, 31 * DAY)
    total = world.client.prune(MONTH)
    assert world.keys() == stays
    for counter in set(found.values()):
        assert getattr(total, counter) == list(found.values()).count(counter), counter
    assert total.num_objects == len(found)


def test_one_young_object_keeps_a_submission_and_an_upload(world: World) -> None:
    leftovers(world)
    age(world, 31 * DAY)
    world.store.put(keys.input_shard("cut", "s1", "00001"), b"{}")
    world.store.put(keys.staging("half") + "samples.jsonl", b"{}")
    total = world.client.prune(MONTH)
    assert (total.num_submissions, total.num_uploads) == (0, 1)


def test_temporary_files_of_store_and_workers_go_when_they_are_old(world: World) -> None:
    tmp = world.home / "tmp"
    (tmp / "upload-1").mkdir(parents=True)
    (tmp / "upload-1" / "weights").write_bytes(bytes(100))
    (tmp / "upload-2").mkdir()
    store = world.home / "store" / ".tmp"
    store.mkdir(exist_ok=True)
    (store / "cut").write_bytes(bytes(10))
    (store / "under-way").touch()
    outside = world.home / "outside"
    outside.write_text("mine")
    (tmp / "link").symlink_to(outside)
    for path in (tmp / "upload-1" / "weights", tmp / "upload-1", store / "cut", tmp / "link"):
        os.utime(path, (now() - MONTH - 9, now() - MONTH - 9), follow_symlinks=False)
    assert world.client.prune(MONTH, dry_run=True).num_files == 3 and (store / "cut").exists()
    assert world.client.prune(MONTH).num_files == 3
    left = [path.name for path in (*tmp.iterdir(), *store.iterdir())]
    assert left == ["upload-2", "under-way"] and outside.read_text() == "mine"


def test_names_that_are_none_are_not_ours_and_stay(world: World) -> None:
    odd = [f"{keys.STAGING}-odd/upload.json", f"{keys.JOBS}-odd/input/s/00000.jsonl"]
    for key in odd:
        world.store.put(key, b"{}")
    age(world, 90 * DAY)
    world.client.prune(MONTH)
    assert set(odd) <= set(world.keys())


def is_open(store: ObjectStore, job_id: str) -> bool:
    """As workers and `ramole recover` see it."""
    job = JobFiles(store, job_id)
    return job.find_manifest() is not None and not job.ended()


def pruned(store: ObjectStore, home: Path, age_seconds: float = MONTH) -> None:
    with Pruner(store, age_seconds, now()) as pruner:
        pruner.prune_jobs()
        pruner.prune_uploads()
        pruner.prune_messages()
        pruner.prune_markers()


@pytest.mark.parametrize("after", [False, True])
def test_cut_at_any_store_call_no_job_looks_open_and_the_next_prune_ends_it(
    after: bool, tmp_path: Path
) -> None:
    template = World(tmp_path / "template")
    put_job(template, "done", finished=31 * DAY)
    put_job(template, "stopped", cancelled=31 * DAY)
    leftovers(template)
    age(template, 31 * DAY)
    whole = {
        job_id: [entry.key for entry in template.store.entries(keys.job(job_id))]
        for job_id in ("done", "stopped")
    }
    for at in range(1, 200):
        home = shutil.copytree(template.home, tmp_path / f"{at}")
        world = World(home, announced=False)
        cut = CutStore(world.store, at, after)
        try:
            pruned(cut, home)  # type: ignore[arg-type]
        except Cut:
            for job_id in whole:
                assert not is_open(world.store, job_id), at
                check_it_is_whole_or_gone_and_its_id_refused(world, job_id, whole[job_id])
            pruned(world.store, home)
            assert not world.keys(), at
        else:
            assert cut.num_calls < at and not world.keys()
            return
    raise AssertionError("more store calls than expected")


def check_it_is_whole_or_gone_and_its_id_refused(
    world: World, job_id: str, whole: list[str]
) -> None:
    left = [key for key in whole if world.store.exists(key)]
    if keys.manifest(job_id) in left:
        assert left == whole
    elif left:
        assert JobFiles(world.store, job_id).ended(), "how it ended goes last"
        with pytest.raises(ConflictError, match="something of it is left"):
            world.client.submit(["new"], job_id=job_id)


def test_the_id_of_a_removed_job_is_free_again(world: World) -> None:
    put_job(world, "j", finished=2 * DAY)
    age(world, 3 * DAY)
    world.client.prune(DAY)
    with pytest.raises(NotFoundError):
        world.client.status("j")
    assert world.client.submit(["other"], job_id="j").created
    assert not world.client.status("j").state.ended


def test_two_prunes_at_once_do_no_harm(world: World) -> None:
    put_job(world, "old", finished=31 * DAY)
    put_job(world, "open")
    age(world, 31 * DAY)
    calls = 0

    class Doubled:
        def __getattr__(self, name: str) -> Callable[..., object]:
            def call(*args: object) -> object:
                nonlocal calls
                calls += 1
                if calls == 8:
                    pruned(world.store, world.home)
                return getattr(world.store, name)(*args)

            return call

    pruned(Doubled(), world.home)  # type: ignore[arg-type]
    assert calls > 8 and jobs_in(world) == ["open"] and is_open(world.store, "open")


class Interrupted:
    """A store at which something happens once, before a call of that name and key."""

    def __init__(self, store: ObjectStore, at: tuple[str, str], happens: Callable[[], Any]) -> None:
        self._store, self._at, self._happens = store, at, [happens]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if (name, *args) == self._at and self._happens:
                self._happens.pop()()
            return getattr(self._store, name)(*args)

        return call


@pytest.mark.parametrize(
    "at",
    [
        ("delete", keys.manifest("a")),
        ("entries", keys.job("nightly")),
        ("exists", keys.manifest("nightly")),
        ("delete", keys.finished("nightly")),
    ],
)
def test_a_removal_that_another_overtakes_spares_the_new_job_of_that_id(
    world: World, at: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_id in ("a", "nightly"):
        put_job(world, job_id, finished=31 * DAY)
    age(world, 31 * DAY)
    monkeypatch.setattr("producer.prune.THREADS", 1)

    def overtaken() -> None:
        pruned(world.store, world.home)
        world.client.submit(["new"], job_id="nightly")
        world.answer("nightly")

    pruned(Interrupted(world.store, at, overtaken), world.home)  # type: ignore[arg-type]
    assert jobs_in(world) == ["nightly"] and is_open(world.store, "nightly")
    assert [r.text for r in world.client.results("nightly", partial=True)] == ["NEW"]
    assert [r.prompt for r in world.requests("nightly")] == ["new"]


def test_a_marker_is_looked_at_again_before_it_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_id in ("a", "b"):
        world.store.put(keys.live(job_id), b"")  # what cut submissions left
    age(world, 31 * DAY)
    monkeypatch.setattr("producer.prune.THREADS", 1)
    at = ("delete", keys.live("a"))
    slow = Interrupted(world.store, at, lambda: world.client.submit(["new"], job_id="b"))
    with Pruner(slow, MONTH, now()) as pruner:  # type: ignore[arg-type]
        pruner.prune_markers()
    assert [info.key for info in world.store.entries(keys.LIVE_JOBS)] == [keys.live("b")]


def test_what_is_reported_is_known_before_anything_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_job(world, "j", finished=31 * DAY)
    monkeypatch.setattr("producer.prune._row", lambda *_: 1 / 0)
    before = world.keys()
    with pytest.raises(ZeroDivisionError):
        world.client.prune(MONTH)
    assert world.keys() == before


def test_a_store_without_files_and_a_home_without_tmp_have_none(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    assert list(temporary_files(store, tmp_path / "tmp")) == []
    assert list(temporary_files(object(), tmp_path / "tmp")) == []  # type: ignore[arg-type]


def test_the_command_shows_each_job_and_the_totals(ramole: Ramole, world: World) -> None:
    put_job(world, "old", finished=31 * DAY)
    leftovers(world)
    age(world, 31 * DAY)
    code, out, err = ramole("jobs", "prune", "--older-than", "30d", "--dry-run")
    job, total = out.splitlines()
    assert (code, err) == (0, "") and job.startswith("old  ended 20") and " 8 objects  " in job
    assert total.startswith("would remove 1 job, 1 cut submission, 2 staged uploads, 4 messages, ")
    row, sums = ramole.json("jobs", "prune", "--older-than", "30d")
    assert row["job_id"] == "old" and row["num_objects"] == 8
    assert sums["num_objects"] == 8 + 9 and not sums["dry_run"]
    assert (
        ramole("jobs", "prune", "--older-than", "30d")[1] == "removed 0 jobs: 0 objects, 0 bytes\n"
    )


def test_the_listing_is_still_there_and_the_age_must_be_given(ramole: Ramole, world: World) -> None:
    put_job(world, "j")
    assert ramole("jobs")[1].splitlines()[1].split()[0] == "j"
    assert [job["job_id"] for job in ramole.json("jobs")] == ["j"]
    for words in (
        ("prune",),
        ("prune", "--older-than", "soon"),
        ("prune", "--older-than", ""),
        ("prune", "--older-than", "30"),
        ("prune", "--older-than", "0"),
        ("prune", "--older-than", "0.5"),
        ("--json", "prune", "--older-than", "1d"),
    ):
        code, out, err = ramole("jobs", *words)
        assert code == 2 and "Traceback" not in err, words
        assert not out or json.loads(out)["error"]["code"] == "invalid_input"
