"""The mixture layer against PEFT and against the equations written out."""

import itertools

import pytest
import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights
from ramole_core.mole.attach import attach, target_shapes
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.gates import Mix
from ramole_core.mole.layer import LayerError, low_rank_term
from ramole_core.mole.plan import BatchPlan
from ramole_core.mole.router import random_router

from .reference import reference
from .tiny import CONFIGS, DictSource, peft_adapter, random_adapter, tiny_model

CPU = torch.device("cpu")
REFS = [AdapterRef(f"a{i}", 1) for i in range(6)]
PROMPTS = [[5, 9, 200, 31, 7], [1, 2], [90, 91, 92, 93, 94, 95, 96], [250], [13, 14, 15]]


def make_bank(targets, adapters, router=None, capacity=16, dtype=torch.float32):
    bank = AdapterBank(targets, capacity, DictSource(adapters), CPU, dtype)
    if router is not None:
        bank.use_router("r1", router)
    for ref in adapters:
        bank.acquire(ref)
    return bank


@torch.inference_mode()
def batch_logits(mole, bank, prompts, mixes):
    """Left-padded batch -> logits (T_i, V) per prompt and the reported weights."""
    packed = bank.pack([m.experts[i] for m in mixes for i in m.active()])
    plan = BatchPlan.build(mixes, packed, CPU)
    plan.counting = True
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with mole.running(plan):
        logits = mole.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return [row[width - len(p) :] for row, p in zip(logits, prompts, strict=True)], plan.report()


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
    bank = make_bank(mole.targets, {REFS[0]: weights})
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
    packed = bank.pack(REFS[:3])
    plan = BatchPlan.build([Mix("mixture", tuple(REFS[:3]))], packed, CPU)
    term = low_rank_term(x, packed.linears[name], plan)
    torch.testing.assert_close(term, sum(deltas) / 3, rtol=1e-4, atol=1e-5)


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
    logits, reports = batch_logits(mole, make_bank(targets, adapters, router), prompts, MIXES)
    for row, (wanted, weights) in enumerate(expected):
        torch.testing.assert_close(logits[row], wanted, rtol=1e-3, atol=1e-3, msg=str(MIXES[row]))
        assert reports[row] == pytest.approx(weights, abs=1e-4), MIXES[row]


def test_the_gates_give_different_answers():
    """Guards the test above: gates that are confused would otherwise go unnoticed."""
    model = tiny_model()
    targets = target_shapes(model)
    router = random_router(targets, 3, torch.Generator().manual_seed(7))
    mole, bank = attach(model), make_bank(targets, mixed_adapters(targets), router)
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
    mole, bank = attach(model), make_bank(targets, mixed_adapters(targets), router)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(MIXES))]
    together, reports = batch_logits(mole, bank, prompts, MIXES)
    for row, mix in enumerate(MIXES):
        [alone], [report] = batch_logits(mole, bank, [prompts[row]], [mix])
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
        assert reports[row] == pytest.approx(report, abs=1e-5)


def test_an_expert_without_the_target_keeps_its_share_and_adds_nothing():
    """v_i = 0 gives s_i = 0: α of the others is what softmax leaves, not renormalised."""
    targets = {"x": (6, 5), "y": (6, 5)}
    full, other = random_adapter(targets, 2, 0), random_adapter({"y": (6, 5)}, 2, 1)
    router = random_router(targets, 2, torch.Generator().manual_seed(1))
    bank = make_bank(targets, {REFS[0]: full, REFS[1]: other}, router)
    packed = bank.pack(REFS[:2])
    plan = BatchPlan.build([Mix("mole-plain", tuple(REFS[:2]), (), (), "r1")], packed, CPU)
    x = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(2))
    a_r, b_r = router.pairs["x"]
    pair = full.pairs["x"]
    v = pair.b @ (pair.a @ x[0, 0])
    score = (a_r @ x[0, 0]) @ (b_r.T @ v) / 2**0.5
    alpha = torch.softmax(torch.stack([score, torch.tensor(0.0)]), 0)[0]
    term = low_rank_term(x, packed.linears["x"], plan)[0, 0]
    torch.testing.assert_close(term, alpha * v)


def test_routers_weights_are_counted_only_where_a_token_comes_from():
    targets = {"x": (6, 5)}
    router = random_router(targets, 2, torch.Generator().manual_seed(1))
    adapters = {ref: random_adapter(targets, 2, i) for i, ref in enumerate(REFS[:2])}
    packed = make_bank(targets, adapters, router).pack(REFS[:2])
    plan = BatchPlan.build([Mix("mole-plain", tuple(REFS[:2]), (), (), "r1")], packed, CPU)
    x = torch.randn(1, 3, 5)
    low_rank_term(x, packed.linears["x"], plan)
    assert plan.num_weights == 0
    plan.counting = True
    low_rank_term(x, packed.linears["x"], plan)
    [whole] = plan.report()
    last = BatchPlan.build(plan.mixes, packed, CPU)
    last.counting = True
    low_rank_term(x[:, -1:], packed.linears["x"], last)
    assert whole == pytest.approx(last.report()[0], abs=1e-6)
    assert sum(whole) == pytest.approx(1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_base_is_untouched_without_a_plan_and_after_detaching(kind):
    model = tiny_model(kind)
    ids = torch.tensor([PROMPTS[0]])
    names = [name for name, _ in model.named_modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        before = model(ids).logits
        mole = attach(model)
        bank = make_bank(mole.targets, {REFS[0]: random_adapter(mole.targets, 2, 0)})
        [adapted], _ = batch_logits(mole, bank, [PROMPTS[0]], [Mix("mixture", (REFS[0],))])
        assert not torch.equal(adapted, before[0])
        assert torch.equal(model(ids).logits, before)
        [base_row], _ = batch_logits(mole, bank, [PROMPTS[0]], [Mix("mole")])
        torch.testing.assert_close(base_row, before[0])
        assert torch.equal(mole.detach()(ids).logits, before)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_prompts_and_tokens_may_come_flattened_but_never_mixed():
    model = tiny_model()
    mole = attach(model)
    name, (_, d_in) = next(iter(mole.targets.items()))
    bank = make_bank(
        mole.targets, {r: random_adapter(mole.targets, 2, i) for i, r in enumerate(REFS[:2])}
    )
    plan = BatchPlan.build([Mix("mixture", (r,)) for r in REFS[:2]], bank.pack(REFS[:2]), CPU)
    plan.num_tokens = 3
    linear = model.get_submodule(name)
    x = torch.randn(2, 3, d_in)
    with mole.running(plan):
        torch.testing.assert_close(linear(x.view(6, d_in)), linear(x).view(6, -1))
        with pytest.raises(LayerError, match="mixes prompts"):
            linear(x.view(6, d_in)[:4])


def test_dims_between_the_prompt_and_the_width_count_as_tokens():
    model = tiny_model()
    mole = attach(model)
    name, (_, d_in) = next(iter(mole.targets.items()))
    bank = make_bank(
        mole.targets, {r: random_adapter(mole.targets, 2, i) for i, r in enumerate(REFS[:2])}
    )
    plan = BatchPlan.build([Mix("mixture", (r,)) for r in REFS[:2]], bank.pack(REFS[:2]), CPU)
    linear = model.get_submodule(name)
    x = torch.randn(2, 3, 4, d_in)
    with mole.running(plan):
        torch.testing.assert_close(linear(x), linear(x.view(2, 12, d_in)).view(2, 3, 4, -1))


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
    together = BatchPlan.build([bad, mix], bank.pack(REFS[:3]), CPU)
    term = low_rank_term(x, bank.pack(REFS[:3]).linears["x"], together)
    assert not term[0].isfinite().all(), "the test must overflow"
    [rest] = low_rank_term(x[1:], together.packed.linears["x"], together.select([1]))
    alone = BatchPlan.build([mix], bank.pack(REFS[1:3]), CPU)
    [wanted] = low_rank_term(x[1:], alone.packed.linears["x"], alone)
    torch.testing.assert_close(term[1], wanted)
    torch.testing.assert_close(rest, wanted)


def test_bfloat16_follows_float32():
    model = tiny_model()
    targets = target_shapes(model)
    router = random_router(targets, 3, torch.Generator().manual_seed(7))
    mole = attach(model)
    exact, _ = batch_logits(
        mole, make_bank(targets, mixed_adapters(targets), router), PROMPTS[:2], MIXES[:2]
    )
    mole.model.to(torch.bfloat16)
    bank = make_bank(targets, mixed_adapters(targets), router, dtype=torch.bfloat16)
    rough, _ = batch_logits(mole, bank, PROMPTS[:2], MIXES[:2])
    for a, b in zip(exact, rough, strict=True):
        cosine = torch.nn.functional.cosine_similarity(a, b.float(), dim=-1)
        assert cosine.min() > 0.95


def test_an_empty_adapter_is_the_base_model():
    model = tiny_model()
    mole = attach(model)
    bank = make_bank(mole.targets, {REFS[0]: LoraWeights({})})
    [logits], _ = batch_logits(mole, bank, [PROMPTS[0]], [Mix("mixture", (REFS[0],))])
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(torch.tensor([PROMPTS[0]])).logits[0])
