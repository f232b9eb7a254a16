"""The mixture layer against PEFT and against the equations written out."""

import itertools

import pytest
import torch
from torch import nn

from ramole_core.adapters.weights import LoraWeights
from ramole_core.mole.attach import attach, target_shapes
from ramole_core.mole.gates import Mix
from ramole_core.mole.layer import LayerError, MoleLinear, PlanHolder
from ramole_core.mole.router import random_router

from .mixtures import REFS, make_bank, make_plan, reports, term
from .reference import reference
from .tiny import CONFIGS, peft_adapter, random_adapter, tiny_model

PROMPTS = [[5, 9, 200, 31, 7], [1, 2], [90, 91, 92, 93, 94, 95, 96], [250], [13, 14, 15]]


@torch.inference_mode()
def batch_logits(mole, bank, prompts, mixes):
    """Left-padded batch -> logits (T_i, V) per prompt and the reported weights."""
    width = max(map(len, prompts))
    plan = make_plan(mixes, width, bank)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with mole.running(plan):
        logits = mole.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    rows = [row[width - len(p) :] for row, p in zip(logits, prompts, strict=True)]
    return rows, reports(plan, mixes)


def mixed_adapters(targets):
    """Six adapters: different ranks, and targets that overlap only in part."""
    names = list(targets)
    subsets = [names, names, names[::2], names[1::2], names[:3], names]
    return {
        ref: random_adapter({n: targets[n] for n in subset}, rank, seed=i)
        for i, (ref, subset, rank) in enumerate(zip(REFS, subsets, (4, 2, 8, 3, 1, 4), strict=True))
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_expert_equals_peft(kind):
    model = tiny_model(kind)
    names = [name.rpartition(".")[2] for name in target_shapes(model)]
    peft, weights = peft_adapter(
        model, seed=1, rank_pattern={names[0]: 7}, alpha_pattern={names[-1]: 3}, use_rslora=True
    )
    mole = attach(model)
    assert weights.pairs.keys() == mole.targets.keys()
    bank = make_bank(mole.targets, {REFS[0]: weights}, groups=mole.groups)
    for gate in ("mole", "mixture", "selection", "fusion"):
        [logits], _ = batch_logits(
            mole, bank, [PROMPTS[0]], [Mix(gate, (REFS[0],), (0.5,), (None,))]
        )
        with torch.inference_mode():
            expected = peft(torch.tensor([PROMPTS[0]])).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_mixture_in_one_layer_is_the_mean_of_the_peft_deltas():
    model = tiny_model()
    name = "model.layers.0.mlp.up_proj"
    pefts, weights = zip(
        *(peft_adapter(model, seed=i, r=i + 2, target_modules=[name]) for i in range(3)),
        strict=True,
    )
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    base = model.get_submodule(name)(x)
    deltas = [peft.base_model.model.get_submodule(name)(x) - base for peft in pefts]
    bank = make_bank({name: (48, 32)}, dict(zip(REFS, weights, strict=False)))
    plan = make_plan([Mix("mixture", tuple(REFS[:3]))], 4, bank)
    torch.testing.assert_close(term(x, name, plan), sum(deltas) / 3, rtol=1e-4, atol=1e-5)


MIXES = [
    Mix("mole", tuple(REFS[:3]), (0.62, 0.60, 0.55), (), "r1"),
    Mix("mole-plain", (REFS[3], REFS[1]), (0.1, 0.9), (), "r1"),
    Mix("fusion", (REFS[0], REFS[2], REFS[4]), (0.3, 0.2, 0.1)),
    Mix("selection", (REFS[2], REFS[5]), (0.3, 0.7)),
    Mix("weights", (REFS[4], REFS[0]), (), (-0.5, 1.5)),
    Mix("mixture", (REFS[5], REFS[3], REFS[2], REFS[1])),
    Mix("mole", (REFS[1], REFS[4]), (0.6, 0.58)),
    Mix("mole", (REFS[1], REFS[4]), (0.6, 0.58), tau=0.01),
    Mix("cascade", (REFS[0], REFS[5]), (0.5, 0.3), (), "r1", 0.2),
    Mix("mole"),
]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_gate_in_one_batch_equals_the_equations(kind):
    model = tiny_model(kind)
    targets = target_shapes(model)
    router = random_router(dict(list(targets.items())[1:]), 3, torch.Generator().manual_seed(7))
    adapters = mixed_adapters(targets)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(MIXES))]
    expected = [
        reference(model, p, m, [adapters[r] for r in m.experts], router)
        for p, m in zip(prompts, MIXES, strict=True)
    ]
    mole = attach(model)
    bank = make_bank(targets, adapters, router, groups=mole.groups)
    logits, found = batch_logits(mole, bank, prompts, MIXES)
    for row, (wanted, weights) in enumerate(expected):
        torch.testing.assert_close(logits[row], wanted, rtol=1e-3, atol=1e-3, msg=str(MIXES[row]))
        assert found[row] == pytest.approx(weights, abs=1e-4), MIXES[row]


def test_the_gates_give_different_answers():
    """Guards the test above: gates that are confused would otherwise go unnoticed."""
    model = tiny_model()
    targets = target_shapes(model)
    router = random_router(targets, 3, torch.Generator().manual_seed(7))
    mole = attach(model)
    bank = make_bank(targets, mixed_adapters(targets), router, groups=mole.groups)
    experts, sims = tuple(REFS[:3]), (0.5, 0.55, 0.52)
    mixes = [Mix(g, experts, sims) for g in ("mole", "selection", "mixture", "fusion")]
    mixes += [Mix(g, experts, sims, (), "r1") for g in ("mole", "mole-plain")]
    logits, _ = batch_logits(mole, bank, [PROMPTS[0]] * 6, mixes)
    for left, right in itertools.combinations(logits, 2):
        assert (left - right).abs().max() > 0.01


def test_a_batch_equals_one_by_one():
    model = tiny_model()
    targets = target_shapes(model)
    router = random_router(targets, 3, torch.Generator().manual_seed(7))
    mole = attach(model)
    bank = make_bank(targets, mixed_adapters(targets), router, groups=mole.groups)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(MIXES))]
    together, found = batch_logits(mole, bank, prompts, MIXES)
    for row, mix in enumerate(MIXES):
        [alone], [report] = batch_logits(mole, bank, [prompts[row]], [mix])
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
        assert found[row] == pytest.approx(report, abs=1e-5)


def test_an_expert_without_the_target_keeps_its_share_and_adds_nothing():
    """v_i = 0 gives s_i = 0: α of the others is what softmax leaves, not renormalised."""
    targets = {"x": (6, 5), "y": (6, 5)}
    full, other = random_adapter(targets, 2, 0), random_adapter({"y": (6, 5)}, 2, 1)
    router = random_router(targets, 2, torch.Generator().manual_seed(1))
    bank = make_bank(targets, {REFS[0]: full, REFS[1]: other}, router)
    plan = make_plan([Mix("mole-plain", tuple(REFS[:2]), (), (), "r1")], 1, bank)
    x = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(2))
    a_r, b_r = router.pairs["x"]
    pair = full.pairs["x"]
    v = pair.b @ (pair.a @ x[0, 0])
    score = (a_r @ x[0, 0]) @ (b_r.T @ v) / 2**0.5
    alpha = torch.softmax(torch.stack([score, torch.tensor(0.0)]), 0)[0]
    torch.testing.assert_close(term(x, "x", plan)[0, 0], alpha * v)


def test_routers_weights_are_counted_only_where_a_token_comes_from():
    targets = {"x": (6, 5)}
    router = random_router(targets, 2, torch.Generator().manual_seed(1))
    adapters = {ref: random_adapter(targets, 2, i) for i, ref in enumerate(REFS[:2])}
    bank = make_bank(targets, adapters, router)
    mixes = [Mix("mole-plain", tuple(REFS[:2]), (), (), "r1")]
    x = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(2))
    found = []
    for part in (x, x[:, -1:], x[:, :1]):
        plan = make_plan(mixes, part.shape[1], bank)
        term(part, "x", plan)
        found += reports(plan, mixes)
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0] != pytest.approx(found[2], abs=1e-2), "the position must matter"
    assert sum(found[0]) == pytest.approx(1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_base_is_untouched_without_a_plan_and_after_detaching(kind):
    model = tiny_model(kind)
    ids = torch.tensor([PROMPTS[0]])
    names = [name for name, _ in model.named_modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        before = model(ids).logits
        mole = attach(model)
        adapters = {REFS[0]: random_adapter(mole.targets, 2, 0)}
        bank = make_bank(mole.targets, adapters, groups=mole.groups)
        [adapted], _ = batch_logits(mole, bank, [PROMPTS[0]], [Mix("mixture", (REFS[0],))])
        assert not torch.equal(adapted, before[0])
        assert torch.equal(model(ids).logits, before)
        [base_row], _ = batch_logits(mole, bank, [PROMPTS[0]], [Mix("mole")])
        torch.testing.assert_close(base_row, before[0])
        assert torch.equal(mole.detach()(ids).logits, before)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def two_prompts(targets, num_tokens=3):
    """A bank and a plan of two prompts with an expert each."""
    bank = make_bank(targets, {r: random_adapter(targets, 2, i) for i, r in enumerate(REFS[:2])})
    return make_plan([Mix("mixture", (r,)) for r in REFS[:2]], num_tokens, bank)


def test_prompts_and_tokens_may_come_flattened_but_never_mixed():
    mole = attach(tiny_model())
    name, (_, d_in) = next(iter(mole.targets.items()))
    linear = mole.model.get_submodule(name)
    x = torch.randn(2, 3, d_in)
    with mole.running(two_prompts(mole.targets)):
        wanted = linear(x)
        torch.testing.assert_close(linear(x.view(6, d_in)), wanted.view(6, -1))
        torch.testing.assert_close(linear(x.view(1, 6, d_in)), wanted.view(1, 6, -1))
        with pytest.raises(LayerError, match="mixes prompts"):
            linear(x.view(6, d_in)[:4])


def test_dims_between_the_prompt_and_the_width_are_refused():
    mole = attach(tiny_model())
    name, (_, d_in) = next(iter(mole.targets.items()))
    with mole.running(two_prompts(mole.targets)), pytest.raises(LayerError, match=name):
        mole.model.get_submodule(name)(torch.randn(2, 3, 4, d_in))


def test_a_linear_that_no_expert_has_may_be_handed_anything():
    """Models that give each of many linears a choice of the tokens run if nobody adapts those."""
    mole = attach(tiny_model())
    name, (_, d_in) = next(iter(mole.targets.items()))
    others = {target: shape for target, shape in mole.targets.items() if target != name}
    linear = mole.model.get_submodule(name)
    for shape in ((2, 2, 4, d_in), (100, d_in), (0, d_in)):
        x = torch.randn(shape)
        with mole.running(two_prompts(others)):
            torch.testing.assert_close(linear(x), linear.base(x))


class Columnwise(nn.Linear):
    """A linear with a forward of its own."""

    def forward(self, x):
        return (self.weight @ x.mT).mT


def test_input_and_base_output_may_lie_in_memory_in_any_order():
    holder = PlanHolder(two_prompts({"x": (6, 5)}))
    base = Columnwise(5, 6, bias=False)
    x = torch.randn(5, 3, 2).permute(2, 1, 0)  # (B, T, D)
    assert not base(x).is_contiguous()
    with torch.no_grad():
        found = MoleLinear(base, "x", holder)(x)
    torch.testing.assert_close(found, base(x) + term(x.contiguous(), "x", holder.plan))
    assert found.is_contiguous()


def test_what_the_model_gets_lies_in_memory_as_without_a_plan():
    """Models look at their linears' outputs through views."""
    holder = PlanHolder(two_prompts({"x": (6, 5)}))
    with torch.no_grad():
        assert MoleLinear(nn.Linear(5, 6), "x", holder)(torch.randn(2, 3, 5)).is_contiguous()


@pytest.mark.parametrize(
    "mix",
    [
        Mix("mixture", (REFS[1], REFS[2])),
        Mix("fusion", (REFS[1], REFS[2])),
        Mix("mole", (REFS[1], REFS[2]), (0.5, 0.4), (), "r1"),
    ],
    ids=lambda mix: mix.gate,
)
def test_an_expert_that_overflows_does_not_reach_its_neighbours(mix):
    """float16 ends at 65504: the foreign columns hold inf, and 0 · inf is NaN."""
    targets = {"x": (6, 5)}
    router = random_router(targets, 2, torch.Generator().manual_seed(1))
    adapters = {ref: random_adapter(targets, 2, i) for i, ref in enumerate(REFS[:3])}
    adapters[REFS[0]].pairs["x"].a.fill_(9e3)
    bank = make_bank(targets, adapters, router, dtype=torch.float16)
    x = torch.full((2, 3, 5), 4.0, dtype=torch.float16)
    bad = Mix("mixture", (REFS[0],))
    everyone = REFS[:3]
    found = term(x, "x", make_plan([bad, mix], 3, bank, everyone))
    assert not found[0].isfinite().all(), "the test must overflow"
    [rest] = term(x[1:], "x", make_plan([mix], 3, bank, everyone))
    [wanted] = term(x[1:], "x", make_plan([mix], 3, bank))
    torch.testing.assert_close(found[1], wanted)
    torch.testing.assert_close(rest, wanted)


def test_bfloat16_follows_float32():
    model = tiny_model()
    targets = target_shapes(model)
    router = random_router(targets, 3, torch.Generator().manual_seed(7))
    mole = attach(model)
    bank = make_bank(targets, mixed_adapters(targets), router, groups=mole.groups)
    exact, _ = batch_logits(mole, bank, PROMPTS[:2], MIXES[:2])
    mole.model.to(torch.bfloat16)
    bank = make_bank(
        targets, mixed_adapters(targets), router, dtype=torch.bfloat16, groups=mole.groups
    )
    rough, _ = batch_logits(mole, bank, PROMPTS[:2], MIXES[:2])
    for a, b in zip(exact, rough, strict=True):
        cosine = torch.nn.functional.cosine_similarity(a, b.float(), dim=-1)
        assert cosine.min() > 0.95


def test_an_empty_adapter_is_the_base_model():
    model = tiny_model()
    mole = attach(model)
    bank = make_bank(mole.targets, {REFS[0]: LoraWeights({})}, groups=mole.groups)
    [logits], _ = batch_logits(mole, bank, [PROMPTS[0]], [Mix("mixture", (REFS[0],))])
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(torch.tensor([PROMPTS[0]])).logits[0])
