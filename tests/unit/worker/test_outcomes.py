"""What a result record says of how its answer came about: adapters, floors, second passes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramole_core import jobs
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.engine.choice import CascadeRule
from ramole_core.engine.request import Expert, Generation, GenerationFuture, GenerationRequest
from ramole_core.errors import PromptError
from ramole_core.jobs import PromptRequest, PromptResult
from ramole_core.retrieval.index import Match
from ramole_core.retrieval.retriever import Query, Retriever
from tests.unit.worker.world import World, make_world, put_job
from worker.results import result_of
from worker.routing import Routed
from worker.shards import DEADLINE

SIMILARITIES = (0.75, 0.5, 0.25)
MATCHES = [Match(AdapterRef(f"a{i}", 1), s) for i, s in enumerate(SIMILARITIES)]


@pytest.fixture
def world(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Every prompt finds MATCHES, unless it is to use none."""

    def search(_: Retriever, queries: list[Query]) -> list[list[Match]]:
        return [[] if q.allow == () else MATCHES[: q.k] for q in queries]

    monkeypatch.setattr(Retriever, "search", search)
    monkeypatch.setattr(Registry, "resolve", lambda _, name, *rest: AdapterRef(name, 1))
    yield make_world(tmp_path, redis_url)


def run(world: World, *options: dict[str, Any], **job: Any) -> list[PromptResult]:
    """One prompt for each of the options."""
    prompts = [PromptRequest(index=i, prompt="x", options=o) for i, o in enumerate(options)]
    put_job(world.store, "j", prompts, **job)
    world.desk.start("j")
    world.dispatcher.fill()
    world.run_next()
    return world.results("j")


def test_only_adapters_above_a_prompts_own_floor_are_used(world: World) -> None:
    floors = [None, 0.2, 0.25, 0.3, 0.6, 0.75]
    found = run(world, *({"min_similarity": floor} for floor in floors), min_similarity=0.7)
    used = [[use.similarity for use in result.adapters] for result in found]
    assert used == [[s for s in SIMILARITIES if floor is None or s >= floor] for floor in floors]
    assert not any(result.no_adapter for result in found)


def test_the_base_model_for_want_of_an_adapter_is_told_from_the_base_model_asked_for(
    world: World,
) -> None:
    below, none, asked, named, failed = run(
        world,
        {"min_similarity": 0.9},
        {"allow_adapters": []},
        {"adapters": []},
        {"adapters": [{"name": "a0"}]},
        {"min_similarity": 0.9, "on_no_adapter": "fail"},
    )
    for result in (below, none, asked):
        assert result.text == "X" and result.adapters == ()
    assert [below.no_adapter, none.no_adapter] == [True, True]
    assert [asked.no_adapter, named.no_adapter, failed.no_adapter] == [False] * 3
    assert failed.error is not None and failed.error.code == "no_adapter"


def test_explicit_adapters_bypass_every_gate_and_retrieved_ones_get_the_jobs(world: World) -> None:
    run(world, {"adapters": [{"name": "a0", "weight": 0.3}]}, {}, {"gate": "mole"}, gate="cascade")
    explicit, job, own = world.engine.requests
    assert (explicit.gate, job.gate, own.gate) == ("weights", "cascade", "mole")
    assert explicit.experts == (Expert(AdapterRef("a0", 1), weight=0.3),)
    assert job.cascades and not explicit.cascades
    assert job.rule == CascadeRule.calibrated(floor=-0.1, spread=0.5)


def ended(answer: Generation | PromptError) -> PromptResult:
    prompt = PromptRequest(index=0, prompt="a")
    request = GenerationRequest("a", experts=(Expert(AdapterRef("x", 1), 0.5),))
    future = GenerationFuture()
    if isinstance(answer, Generation):
        future.set_result(answer)
    else:
        future.set_exception(answer)
    return result_of(Routed(prompt, request), future, DEADLINE)


def test_what_a_second_pass_cost_stands_in_the_usage() -> None:
    usage = ended(Generation("t", "stop", 3, 2, (1.0,), -0.1, 4, 17)).usage
    assert usage == jobs.Usage(
        prompt_tokens=3, completion_tokens=2, extra_passes=4, extra_tokens=17
    )
    usage = ended(Generation("t", "stop", 3, 2, (1.0,))).usage
    assert usage is not None and (usage.extra_passes, usage.extra_tokens) == (0, 0)
    assert ended(PromptError("too_long", "too long")).usage is None


def test_results_of_older_workers_still_parse() -> None:
    line = (
        '{"index":0,"id":"a","text":"t","finish_reason":"stop","adapters":[{"name":"x",'
        '"version":1,"similarity":0.5,"weight":1.0}],"usage":{"prompt_tokens":3,'
        '"completion_tokens":2},"error":null}'
    )
    result = PromptResult.model_validate_json(line)
    assert not result.no_adapter
    assert result.usage == jobs.Usage(prompt_tokens=3, completion_tokens=2)
    assert PromptResult.model_validate_json(result.model_dump_json()) == result
