"""Segments against the equations: how rows are put into segments never shows in the answers.

Dims: N rows of a forward, T rows of one prompt, P experts of a segment.
"""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ramole_core.adapters.weights import LoraWeights
from ramole_core.mole import layer
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.gates import GATES, Mix
from ramole_core.mole.layer import MoleLinear, PlanHolder
from ramole_core.mole.plan import BatchPlan, Segment
from ramole_core.mole.router import random_router

from .mixtures import CPU, REFS, make_bank
from .reference import SlowLinear
from .tiny import DictRouters, DictSource, random_adapter

SIDES = {"q": (6, 5), "k": (4, 5), "v": (3, 5), "o": (5, 6)}
GROUPS = [("q", "k", "v"), ("o",)]


def side(names, rank, seed):
    """Pairs of the rank in the linears with one-letter `names`."""
    return random_adapter({name: SIDES[name] for name in names}, rank, seed, scale=0.7).pairs


ADAPTERS = {
    REFS[0]: random_adapter(SIDES, 2, 0, scale=0.7),
    REFS[1]: random_adapter({"k": SIDES["k"]}, 3, 1, scale=0.7),
    REFS[2]: LoraWeights(side("q", 1, 2) | side("vo", 4, 3)),
    REFS[3]: random_adapter({"v": SIDES["v"], "o": SIDES["o"]}, 1, 4, scale=0.7),
    REFS[4]: random_adapter({}, 1, 5),
}
KNOWN = list(ADAPTERS)
ROUTERS = {
    "r1": random_router({n: SIDES[n] for n in "qo"}, 2, torch.Generator().manual_seed(1)),
    "r2": random_router(SIDES, 3, torch.Generator().manual_seed(2)),
}


def linears():
    """Each target's linear, always the same."""
    generator = torch.Generator().manual_seed(3)
    for name, (d_out, d_in) in SIDES.items():
        base = nn.Linear(d_in, d_out)
        base.weight.data = torch.randn(d_out, d_in, generator=generator)
        base.bias.data = torch.randn(d_out, generator=generator)
        yield name, base


@dataclass(frozen=True)
class Prompt:
    """Some rows of a forward."""

    mix: Mix
    num_rows: int
    gives_token: bool


@dataclass(frozen=True)
class Case:
    """Prompts of one forward, which of them share a segment, and how that is computed."""

    prompts: tuple[Prompt, ...]
    segments: tuple[tuple[int, ...], ...]  # places of each segment's prompts, in order
    whole: bool  # every segment packs all adapters
    thin: bool  # rows lie side by side in memory, as few of them do


@st.composite
def mixes(draw):
    gate = draw(st.sampled_from(GATES))
    experts = tuple(draw(st.lists(st.sampled_from(KNOWN), max_size=4, unique=True)))
    return Mix(
        gate,
        experts,
        tuple(draw(st.floats(0, 1, width=16)) for _ in experts),
        tuple(draw(st.floats(-2, 2, width=16)) for _ in experts),
        draw(st.sampled_from(["r1", "r2"] if gate == "mole-plain" else [None, "r1", "r2"])),
        draw(st.sampled_from([0.05, 0.5])),
    )


@st.composite
def cases(draw):
    """Any mixes, rows and cuts between prompts; a segment never needs two routers."""
    prompts = tuple(
        draw(st.lists(st.builds(Prompt, mixes(), st.integers(1, 3), st.booleans()), max_size=5))
    )
    segments, router = [], None
    for place, prompt in enumerate(prompts):
        needed = prompt.mix.router if prompt.mix.routed else None
        another = router is not None and needed not in (None, router)
        if not segments or another or draw(st.booleans()):
            segments.append([])
            router = None
        segments[-1].append(place)
        router = router or needed
    return Case(prompts, tuple(map(tuple, segments)), draw(st.booleans()), draw(st.booleans()))


def new_bank():
    bank = AdapterBank(
        SIDES, 16, DictSource(ADAPTERS), CPU, torch.float32, GROUPS, DictRouters(ROUTERS)
    )
    for ref in KNOWN:
        bank.acquire(ref)
    return bank


def plan_of(case):
    """As the engine makes it: prompts without experts may be in no segment."""
    bank, segments, begin = new_bank(), [], 0
    for places in case.segments:
        prompts = [case.prompts[place] for place in places]
        lengths = [p.num_rows for p in prompts]
        routed = [p.mix.router for p in prompts if p.mix.routed]
        refs = KNOWN if case.whole else [p.mix.experts[i] for p in prompts for i in p.mix.active()]
        packed = bank.pack(refs, routed[0] if routed else None)
        if packed.experts:
            counted = last_rows(prompts)
            everywhere = len(counted) == sum(lengths)
            mixes = [p.mix for p in prompts]
            segments.append(
                Segment.of(begin, mixes, lengths, None if everywhere else counted, packed, CPU)
            )
        begin += sum(lengths)
    return BatchPlan(begin, tuple(segments))


def last_rows(prompts):
    """The last rows of those that give a token."""
    ends = itertools.accumulate(p.num_rows for p in prompts)
    return [end - 1 for end, p in zip(ends, prompts, strict=True) if p.gives_token]


def run(x, plan, thin=True, order="qkvo"):
    """x (N, D) -> target -> (N, D_out). q, k and v read x, `o` what q gives."""
    holder, found, bases = PlanHolder(plan), {}, dict(linears())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layer.THIN_ROWS, torch.float32, 100 if thin else 0)
        for name in order:
            read = found["q"] if name == "o" else x
            found[name] = MoleLinear(bases[name], name, holder)(read)
    return found


def slow_run(x, prompt):
    """The same for one prompt's x (T, D), by the equations; and its mean weights, last row."""
    found, alphas = {}, []
    experts = [ADAPTERS[ref] for ref in prompt.mix.experts]
    for name, base in linears():
        slow = SlowLinear(base, name, prompt.mix, experts, ROUTERS.get(prompt.mix.router))
        found[name] = slow((found["q"] if name == "o" else x)[None])[0]
        alphas += [alpha[-1] for alpha in slow.alphas]
    return found, torch.stack(alphas).mean(0).tolist() if alphas else []


def weights_of(case, plan):
    """Expert -> mean weight for each prompt that gives a token and is in a segment, by place."""
    found = {}
    segments = iter(plan.segments)
    for places in case.segments:
        rows = sum(case.prompts[p].num_rows for p in places)
        experts = case.whole or any(case.prompts[p].mix.active() for p in places)
        if not (rows and experts):
            continue
        segment = next(segments)
        giving = [place for place in places if case.prompts[place].gives_token]
        assert segment.num_giving == len(giving)
        for place, row in zip(giving, segment.weights().tolist(), strict=True):
            found[place] = dict(zip(segment.packed.experts, row, strict=True))
    return found


@settings(deadline=None, max_examples=150)
@given(cases(), st.integers(0, 2**31))
@torch.inference_mode()
def test_any_segments_give_what_the_equations_say(case, seed):
    plan = plan_of(case)
    x = torch.randn(plan.num_rows, 5, generator=torch.Generator().manual_seed(seed))
    found = run(x, plan, case.thin)
    weights = weights_of(case, plan)
    begin = 0
    for place, prompt in enumerate(case.prompts):
        rows = slice(begin, begin + prompt.num_rows)
        wanted, mean = slow_run(x[rows], prompt)
        for name in SIDES:
            torch.testing.assert_close(found[name][rows], wanted[name], rtol=1e-3, atol=1e-3)
        if place in weights:
            reported = [weights[place].pop(ref, 0.0) for ref in prompt.mix.experts]
            assert reported == pytest.approx(mean, abs=1e-4)
            assert not any(weights[place].values()), "a foreign expert has a weight"
        begin += prompt.num_rows


def test_the_cases_have_what_matters():
    """Guards the test above: what its strategy never draws is not tested."""
    drawn = []

    @settings(deadline=None, max_examples=300, database=None, derandomize=True)
    @given(cases())
    def collect(case):
        drawn.append(case)

    collect()
    plans = [plan_of(case) for case in drawn]
    segments = [segment for plan in plans for segment in plan.segments]
    assert any(len({s.packed.router for s in p.segments} - {None}) == 2 for p in plans)
    assert any(sum(s.end - s.begin for s in p.segments) < p.num_rows for p in plans)
    assert any(s.any_routed and s.routed is not None and s.fused is not None for s in segments)
    assert any(s.counted is not None and len(s.counted) == 0 for s in segments)
    assert any(s.counted is None and s.any_routed for s in segments)


def routed_segment(num_rows):
    """Two experts: q is nobody's, k and v have no router, o has one."""
    mixes = [Mix("mole", (REFS[1], REFS[3]), (0.5, 0.52), (), "r1")] * len(num_rows)
    packed = new_bank().pack(mixes[0].experts, "r1")
    return Segment.of(0, mixes, num_rows, None, packed, CPU)


@torch.inference_mode()
def test_linears_without_scores_count_as_much_as_the_others():
    """q is nobody's, k and v have no router: there α is the prior's."""
    segment = routed_segment([1])
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    run(x, BatchPlan(1, (segment,)))
    mix = Mix("mole", (REFS[1], REFS[3]), (0.5, 0.52), (), "r1")
    _, wanted = slow_run(x, Prompt(mix, 1, True))
    [alpha] = segment.alphas.values()
    prior = segment.static[:, 0]
    assert not torch.allclose(alpha[0, :, 0], prior, atol=1e-2), "the scores must matter"
    assert segment.weights()[0].tolist() == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(segment.weights()[0], (alpha[0, :, 0] + 3 * prior) / 4)


@torch.inference_mode()
def test_a_restarted_segment_knows_nothing_of_the_forward_before():
    x, second = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    kept, fresh = (routed_segment([1, 1, 1]) for _ in range(2))
    run(x, BatchPlan(3, (kept,)), order="vkqo")  # the group's last linear first
    before = kept.weights()
    assert kept.alphas and kept.unscored and kept.shared, "the test must leave something"
    kept.restart()
    assert not kept.alphas and not kept.unscored and not kept.shared
    x.copy_(second)
    again, wanted = run(x, BatchPlan(3, (kept,))), run(x, BatchPlan(3, (fresh,)))
    assert all(torch.equal(again[name], wanted[name]) for name in SIDES)
    assert torch.equal(kept.weights(), fresh.weights())
    assert not torch.allclose(kept.weights(), before)


def test_a_prompt_without_rows_takes_nobodys():
    mixes = [Mix("mixture", (ref,)) for ref in REFS[:3]]
    segment = Segment.of(4, mixes, [2, 0, 1], [1, 2], new_bank().pack(REFS[:3]), CPU)
    assert (segment.begin, segment.end, segment.num_giving) == (4, 7, 2)
    assert segment.static.argmax(0).tolist() == [0, 0, 2]
    assert segment.weights().argmax(1).tolist() == [0, 2]


def test_what_every_row_has_alike_costs_no_choice():
    segment = routed_segment([1, 2])
    assert (segment.foreign, segment.routed, segment.fused, segment.counted) == (None,) * 4
    mixes = [Mix("mole", (REFS[0],), (0.5,), (), "r2"), Mix("fusion", (REFS[0], REFS[2]))]
    packed = new_bank().pack(REFS[:3:2], "r2")
    mixed = Segment.of(0, mixes, [1, 1], None, packed, CPU)
    assert mixed.foreign.tolist() == [[False, False], [True, False]]
    assert mixed.routed.tolist() == [True, False]
    assert mixed.fused.tolist() == [False, True]


def test_no_rows_softmax_is_nan_not_even_one_that_nobody_uses():
    """Its gradient would be NaN as well."""
    mixes = [
        Mix("mole", (REFS[0],), (0.5,), (), "r2"),
        Mix("mole"),
        Mix("weights", REFS[:1], (), (1,)),
    ]
    segment = Segment.of(0, mixes, [1, 1, 1], None, new_bank().pack(REFS[:2], "r2"), CPU)
    assert torch.softmax(segment.prior, 0).isfinite().all()


def test_a_batch_is_one_segment_whose_prompts_last_rows_give_tokens():
    bank = make_bank(SIDES, ADAPTERS)
    mixes = [Mix("mixture", (ref,)) for ref in REFS[:2]]
    packed = bank.pack(REFS[:2])
    plan = BatchPlan.of_batch(mixes, 3, packed, CPU)
    [segment] = plan.segments
    assert (plan.num_rows, segment.begin, segment.end) == (6, 0, 6)
    assert segment.counted.tolist() == [2, 5]
    assert segment.static.argmax(0).tolist() == [0, 0, 0, 1, 1, 1]
    assert BatchPlan.of_batch(mixes, 1, packed, CPU).segments[0].counted is None
    assert BatchPlan.of_batch([Mix("mole")] * 2, 3, bank.pack([]), CPU).segments == ()
