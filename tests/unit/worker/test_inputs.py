"""A shard whose input is damaged, gone or deadly to read: every prompt has its one record."""

import itertools
import json
from pathlib import Path

import pytest

from ramole_core import keys
from ramole_core.errors import NotFoundError
from ramole_core.jobs import Finished, PromptRequest
from ramole_core.store.base import get_json, to_json
from ramole_core.store.directory import DirectoryStore
from tests.unit.worker.world import make_world, prompts, put_job, start
from worker import inputs as inputs_module
from worker import shards as shards_module
from worker.inputs import parse
from worker.ledger import Claim, ShardRef


def test_a_shard_whose_input_is_gone_still_ends_its_job(tmp_path: Path, redis_url: str) -> None:
    world = make_world(tmp_path, redis_url, lease_seconds=0)
    start(world, "a", "b")
    world.store.delete(keys.input_shard("j", "s1", "00000"))
    for _ in range(3):
        claim = world.ledger.claim(ShardRef("j", "00000"), 3)
        assert isinstance(claim, Claim)
        with pytest.raises(NotFoundError):
            world.runner.run(claim)
    world.run_next()
    final = Finished.model_validate_json(world.store.get(keys.finished("j")))
    assert (final.num_ok, final.num_failed) == (0, 2)
    assert [r.index for r in world.results("j")] == [0, 1]
    assert all(r.error and "is not in the store" in r.error.message for r in world.results("j"))


@pytest.mark.parametrize("lost", ["0", "1", "4", "01", "23", "124", "0134", "01234"])
def test_every_prompt_of_lost_inputs_has_one_record(
    lost: str, tmp_path: Path, redis_url: str
) -> None:
    """Of shards of at most 3 prompts, some smaller."""
    world = make_world(tmp_path, redis_url)
    shards, index = [2, 3, 1, 3, 1], itertools.count()
    put_job(world.store, "j", prompts(*"abcdefghij"), shard_size=2)
    manifest = get_json(world.store, keys.manifest("j"))
    manifest["options"]["shard_size"] = 3
    world.store.put(keys.manifest("j"), to_json(manifest))
    for number, size in enumerate(shards):
        lines = [PromptRequest(index=next(index)).model_dump_json() for _ in range(size)]
        world.store.put(keys.input_shard("j", "s1", f"{number:05d}"), "\n".join(lines).encode())
    for number in lost:
        world.store.delete(keys.input_shard("j", "s1", f"0000{number}"))
    for number in range(len(shards)):
        claim = Claim(ShardRef("j", f"{number:05d}"), 4, "w1:4", exhausted=True)
        world.runner.run(claim)
    found = [r.index for n in range(len(shards)) for r in world.results("j", f"{n:05d}")]
    assert found == list(range(10))


@pytest.mark.parametrize("damaged", [(0,), (1, 2), (0, 2), (0, 1, 2)])
def test_a_damaged_line_keeps_its_index(damaged: tuple[int, ...], tmp_path: Path) -> None:
    """Also in a shard that does not begin at a multiple of the shard size."""
    manifest = put_job(DirectoryStore(tmp_path), "j", prompts(*"abcdefgh"), shard_size=4)
    lines = [PromptRequest(index=5 + i, prompt="p").model_dump_json() for i in range(3)]
    for i in damaged:
        lines[i] = lines[i][:-3]
    found = parse("\n".join(lines).encode(), manifest, "00001")
    first = 4 if len(damaged) == 3 else 5
    assert [p.index for p in found] == [first, first + 1, first + 2]
    assert [i for i, p in enumerate(found) if p.error] == list(damaged)


def test_an_input_that_ends_who_reads_it_is_read_no_more(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, redis_url)
    put_job(world.store, "j", prompts("a", "b", "c"), shard_size=2)

    def deadly(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards_module, "parse", deadly)
    with pytest.raises(KeyboardInterrupt):
        world.runner.run(Claim(ShardRef("j", "00000"), 4, "w1:4", exhausted=True, count=4))
    world.runner.run(Claim(ShardRef("j", "00000"), 5, "w1:5", exhausted=True, count=5))
    found = world.results("j")
    assert [r.index for r in found] == [0, 1] and all(r.error for r in found)


def test_nor_are_its_neighbours_where_they_end_who_reads_them(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, redis_url)
    put_job(world.store, "j", prompts(*"abcd"), shard_size=2)
    seen: list[object] = []

    def deadly(*_: object) -> None:
        seen.append(
            (world.quiet.num_preparing, len(json.loads(world.journal.read_text())["preparing"]))
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(shards_module, "parse", deadly)
    monkeypatch.setattr(inputs_module, "parse", deadly)
    for count in (4, 5):
        claim = Claim(ShardRef("j", "00001"), count, f"w1:{count}", exhausted=True, count=count)
        with pytest.raises(KeyboardInterrupt):
            world.runner.run(claim)
    world.runner.run(Claim(ShardRef("j", "00001"), 6, "w1:6", exhausted=True, count=6))
    assert [r.index for r in world.results("j", "00001")] == [2, 3]
    assert seen == [(1, 1), (1, 1)], "a death is charged to this shard alone"
