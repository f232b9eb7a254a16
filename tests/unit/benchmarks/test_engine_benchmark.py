"""The engine benchmark: its workloads, its peers and how it takes times, on a tiny model."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.__main__ import measure, select
from benchmarks.engine.disk import DiskPool
from benchmarks.engine.entrants import EngineEntrant
from benchmarks.engine.measurements import MEASUREMENTS
from benchmarks.engine.model import random_adapter, word_tokenizer
from benchmarks.engine.peers import Generate, Merged, Peft, generate, groups_of
from benchmarks.engine.race import Step, race
from benchmarks.engine.sizes import BATCH, PROMPT_TOKENS, Scale, Shape
from benchmarks.engine.workload import (
    Prompt,
    covering_triples,
    family_triples,
    pool_triples,
    prompts,
    ref_of,
    text_of,
    zipf_lengths,
)
from benchmarks.engine.world import World
from ramole_core.engine.request import Expert, GenerationRequest

TINY = Shape(32, 2, 48, 4, 97, rank=4, router_rank=3, adapters=48, bank=64, files=3)
SCALE = Scale(queue=40, lengths=36, pool=64, rounds=1, groups=2)


@pytest.fixture(scope="module")
def world() -> World:
    """A model whose weights are large enough for its answers to differ."""
    world = World.build(TINY, "cpu", "float32")
    for parameter in world.model.parameters():
        parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    return world


def work(num: int, seed: int = 0, new_tokens: int = 6) -> list[Prompt]:
    rng = random.Random(seed)
    triples = family_triples(num, TINY.adapters, TINY.family, rng)
    return prompts(triples, TINY, rng, [new_tokens] * num)


def ids_of(answers: Any) -> list[list[int]]:
    return [[int(word[1:]) for word in answer.text.split()] for answer in answers]


def finished(entrant: Any) -> Any:
    steps = list(entrant.run())
    assert steps
    return entrant


def test_a_prompt_is_read_as_its_own_ids() -> None:
    tokenizer = word_tokenizer(TINY.vocabulary)
    for prompt in work(20):
        assert len(prompt.ids) == PROMPT_TOKENS
        assert tuple(tokenizer(text_of(prompt.ids))["input_ids"]) == prompt.ids
        assert prompt.with_experts().prompt == prompt.without().prompt == text_of(prompt.ids)
    assert tokenizer.eos_token_id is None and not tokenizer.all_special_ids


def test_experts_are_of_one_family_and_every_adapter_comes_first_some_time() -> None:
    triples = family_triples(2000, 48, 6, random.Random(1))
    assert all(len(set(triple)) == 3 for triple in triples)
    assert all(len({place // 6 for place in triple}) == 1 for triple in triples)
    assert {triple[0] for triple in triples} == set(range(48))
    covering = covering_triples(32, 4, random.Random(1))
    assert sorted(triple[0] for triple in covering) == list(range(32))
    assert all(len({place // 4 for place in triple}) == 1 for triple in covering)
    mix = work(1)[0].with_experts().mix()
    weights = mix.static_weights()
    assert mix.routed and weights == sorted(weights, reverse=True) and weights[0] > weights[2]


def test_both_pools_have_the_same_batches_but_for_whose_weights_they_need() -> None:
    small, large = (pool_triples(320, size, seed=5) for size in (10, 1000))
    assert [[p % 10 for p in triple] for triple in large] == small
    blocks = [large[start : start + BATCH] for start in range(0, 320, BATCH)]
    used = [{p for triple in block for p in triple} for block in blocks]
    assert {len(places) for places in used} == {10}
    assert len(set.union(*used)) > TINY.bank  # the bank must evict
    assert all(len(set(triple)) == 3 for triple in large)
    families = [{p % 10 // 6 for p in triple} for triple in large]
    assert all(len(family) == 1 for family in families)


def test_lengths_are_zipf_between_4_and_128() -> None:
    counts = Counter(zipf_lengths(50_000, random.Random(2)))
    assert min(counts) == 4 and max(counts) == 128
    assert counts[4] / counts[5] == pytest.approx(2, rel=0.1)
    assert counts[4] / counts[7] == pytest.approx(4, rel=0.1)


def test_the_engine_without_adapters_answers_as_generate_does(world: World) -> None:
    asked = work(BATCH + 3)
    engine = finished(EngineEntrant(*world.engine(), [p.without() for p in asked]))
    peer = finished(Generate(world.plain(), asked))
    assert ids_of(engine.answers) == peer.answers
    assert engine.num_tokens == peer.num_tokens == 6 * (BATCH + 3)
    assert len(set(map(tuple, peer.answers))) > BATCH // 2  # the answers tell prompts apart


def single(prompt: Prompt) -> GenerationRequest:
    return GenerationRequest(
        text_of(prompt.ids), experts=(Expert(prompt.experts[0]),), max_new_tokens=6
    )


def test_peft_answers_with_each_prompts_own_adapter(world: World) -> None:
    asked = work(BATCH + 1, seed=3)
    engine = finished(EngineEntrant(*world.engine(), [single(p) for p in asked]))
    peer = finished(Peft(world.plain(), asked, world.adapters.weights))
    assert ids_of(engine.answers) == peer.answers
    assert peer.answers != generate(world.plain(), asked)


def test_merging_answers_as_the_prior_does_and_leaves_the_weights_alone(world: World) -> None:
    asked = work(7, seed=4)
    asked += [Prompt(p.ids[::-1], p.experts, p.new_tokens) for p in asked[:3]]
    groups = groups_of(asked)
    assert len(groups) == 7 and [len(group) for group in groups[:4]] == [2, 2, 2, 1]
    in_groups = [prompt for group in groups for prompt in group]
    model = world.private()
    before = {name: p.clone() for name, p in model.named_parameters()}
    peer = finished(Merged(model, asked, world.adapters.weights))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    prior = [replaced(p.with_experts()) for p in in_groups]
    engine = finished(EngineEntrant(*world.engine(), prior))
    assert ids_of(engine.answers) == peer.answers != generate(model, in_groups)


def replaced(request: GenerationRequest) -> GenerationRequest:
    """Without the router: α is the prior's."""
    return GenerationRequest(
        request.prompt, experts=request.experts, max_new_tokens=request.max_new_tokens
    )


def test_every_load_of_the_pool_reads_a_file(tmp_path: Path) -> None:
    targets = {"model.layers.0.self_attn.q_proj": (8, 6)}
    pool = DiskPool(tmp_path, targets, rank=2, num_files=3)
    for place in (0, 4, 4, 999):
        (pair,) = pool.load(ref_of(place)).pairs.values()
        (written,) = random_adapter(targets, 2, place % 3).pairs.values()
        assert torch.equal(pair.a, written.a) and torch.equal(pair.b, written.b)
    assert pool.num_loads == 4


def test_the_meter_tells_prompts_from_single_tokens(world: World) -> None:
    asked = work(BATCH)
    entrant = EngineEntrant(*world.engine(), [p.with_experts() for p in asked])
    steps = [step for step in entrant.run() if step.rows]
    prefill = [step for step in steps if step.kind == "prefill"]
    decode = [step for step in steps if step.kind == "decode"]
    assert sum(step.rows for step in prefill) == BATCH * PROMPT_TOKENS
    assert sum(step.rows for step in decode) == BATCH * 5  # the prompts gave the first token
    assert {step.experts for step in decode} == {len({e for p in asked for e in p.experts})}


def test_static_batches_wait_for_each_other_and_continuous_ones_do_not(world: World) -> None:
    rng = random.Random(6)
    triples = family_triples(4 * BATCH, TINY.adapters, TINY.family, rng)
    asked = prompts(triples, TINY, rng, [4, 9] * 2 * BATCH)
    requests = [p.with_experts() for p in asked]
    steps = {}
    for share in (0.0, 1.0):
        entrant = EngineEntrant(*world.engine(refill_share=share), requests)
        steps[share] = [step for step in entrant.run() if step.rows]
    assert [step.kind for step in steps[1.0]] == (["prefill"] + ["decode"] * 8) * 4
    assert [step.kind for step in steps[0.0]].count("prefill") > 4
    assert len(steps[0.0]) < len(steps[1.0])


def test_a_window_of_one_batch_keeps_the_order_of_arrival(world: World) -> None:
    asked = work(3 * BATCH, seed=7)
    entrant = EngineEntrant(*world.engine(window=BATCH), [p.with_experts() for p in asked])
    found = [step.experts for step in entrant.run() if step.kind == "prefill"]
    batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
    assert found == [len({ref for p in batch for ref in p.experts}) for batch in batches]
    assert len(set(found)) > 1  # they could be told apart


class Fake:
    """An entrant whose steps take the seconds it is told."""

    def __init__(self, clock: list[float], log: list[str], name: str, *seconds: float) -> None:
        self.clock, self.log, self.name, self.seconds = clock, log, name, seconds
        self.num_tokens = 100

    def run(self) -> Iterator[Step]:
        for seconds in self.seconds:
            self.clock[0] += seconds
            self.log.append(self.name)
            yield Step("decode", 10, 2)

    def facts(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...


def test_entrants_take_turns_and_are_charged_their_own_time() -> None:
    clock, log = [0.0], list[str]()
    entrants = {
        "a": Fake(clock, log, "a", *[1.0] * 6),
        "b": Fake(clock, log, "b", *[0.5] * 4),
    }
    results = race(entrants, rounds=3, clock=lambda: clock[0])
    assert "".join(log) == "aaaabbbbaa" + "bbbbaaaaaa" + "aaaabbbbaa"
    assert results["a"].tokens == 100 / 6.0 and results["b"].tokens == 100 / 2.0
    assert results["a"].rows("decode") == 10.0 and results["b"].experts == 2.0
    with pytest.raises(KeyError):
        results["a"].rows("prefill")


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda m: m.name)
def test_every_measurement_gives_its_rows(world: World, measurement: Any) -> None:
    rows, details = measure(world, measurement, SCALE)
    assert [row.name for row in rows] == [ratio.name for ratio in measurement.rows]
    assert all(row.value > 0 for row in (*rows, *details))


def test_both_pools_run_batches_of_equally_many_experts(world: World) -> None:
    (pool,) = select(["pool_1000_vs_10"])
    with ExitStack() as stack:
        entrants = pool.entrants(world, Scale(pool=4 * BATCH), stack)
        for entrant in entrants.values():
            stack.callback(entrant.close)
        results = race(entrants, rounds=1)
    found = {name: set(runs.rounds[0].experts) for name, runs in results.items()}
    assert found == {"pool_10": {10}, "pool_1000": {10}}
    assert entrants["pool_10"].facts()["loads"] == 10 < entrants["pool_1000"].facts()["loads"]


def test_rows_are_chosen_by_name() -> None:
    assert [m.name for m in select(["mole_vs_base_decode", "peft"])] == ["queue", "peft"]
    assert select([]) == list(MEASUREMENTS)
    with pytest.raises(SystemExit, match="no such row: speed"):
        select(["speed"])
