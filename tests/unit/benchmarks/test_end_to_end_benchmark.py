"""What the end-to-end benchmark asks and what it makes of its rounds."""

from pathlib import Path

from benchmarks.end_to_end.alone import AloneRound
from benchmarks.end_to_end.pools import make_pool, samples, zoo_prompts
from benchmarks.end_to_end.rows import Rounds, rows_of
from benchmarks.end_to_end.through import ThroughRound
from benchmarks.report import Row
from ramole_core import zoo
from ramole_core.adapters.ref import AdapterRef


def alone(seconds: float, *texts: str) -> AloneRound:
    return AloneRound(list(texts), retrieved=seconds / 4, seconds=seconds, cpu_seconds=9.0)


def through(seconds: float, *texts: str) -> ThroughRound:
    return ThroughRound(
        list(texts),
        submitted=0.5,
        begun=0.75,
        first_stored=seconds - 2.0,
        last_stored=seconds - 0.125,
        seconds=seconds,
        cpu_seconds=10.0,
    )


def rows(rounds: Rounds, **more: float | None) -> dict[str, Row]:
    return {row.name: row for row in rows_of(rounds, **more)}


def test_the_ratio_is_that_of_the_medians_beside_its_range() -> None:
    texts = ("a", "b")
    sides = (
        [through(s, *texts) for s in (8.0, 10.0, 40.0)],
        [alone(s, *texts) for s in (4.0, 9.0, 9.0)],
    )
    found = rows(Rounds(18, *sides))
    assert found["end_to_end_vs_engine"].value == 0.9
    assert found["end_to_end_vs_engine"].met is False
    assert found["lowest_of_a_round"].value == 9 / 40
    assert found["highest_of_a_round"].value == 0.9
    assert found["end_to_end_per_second"].value == 1.8
    assert found["engine_per_second"].value == 2.0
    assert rows(Rounds(18, *sides), target=None)["end_to_end_vs_engine"].met is None


def test_the_parts_of_a_job_add_up_to_it() -> None:
    found = rows(Rounds(1, [through(8.0, "a")], [alone(4.0, "a")]))
    parts = ("submit", "queue_wait", "first_output", "other_outputs", "final_record")
    seconds = [found[f"{part}_seconds"].value for part in parts]
    assert seconds == [0.5, 0.25, 5.25, 1.875, 0.125]
    assert found["engine_retrieval_seconds"].value + found["engine_rest_seconds"].value == 4.0


def test_an_answer_that_differs_in_any_round_of_any_side_is_counted() -> None:
    same, other = ("a", "b"), ("a", "x")
    equal = Rounds(2, [through(8.0, *same)] * 2, [alone(8.0, *same)] * 2)
    assert rows(equal)["differing_answers"].met is True
    for sides in (
        ([through(8.0, *other), through(8.0, *same)], [alone(8.0, *same)] * 2),
        ([through(8.0, *same)] * 2, [alone(8.0, *same), alone(8.0, *other)]),
    ):
        row = rows(Rounds(2, *sides))["differing_answers"]
        assert row.value == 1.0 and row.met is False


def test_more_prompts_than_the_zoo_has_begin_again() -> None:
    prompts = zoo_prompts(2000)
    period = prompts.index(prompts[0], 1)
    assert len(prompts) == 2000 and period < 2000
    assert prompts[period:] == prompts[: 2000 - period]
    assert zoo_prompts(3) == prompts[:3]


def test_the_zoo_is_served_as_it_is(tmp_path: Path) -> None:
    pool = make_pool("zoo", tmp_path)
    name = zoo.adapter_names()[0]
    assert sorted(pool.adapters) == zoo.adapter_names() and pool.variables == {
        "RAMOLE_DTYPE": "float32"
    }
    assert pool.load(AdapterRef(name, 1)).pairs.keys()
    assert len(samples(name)) == 20 and list(tmp_path.iterdir()) == []
