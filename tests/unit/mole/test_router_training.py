"""Router training: the loss against the equations written out, and what training may change."""

import copy
import math
import random

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ramole_core import zoo
from ramole_core.adapters.loading import load_lora
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.model import load_base
from ramole_core.errors import InvalidInputError
from ramole_core.mole.attach import attach, target_linears, target_shapes
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.gates import Mix
from ramole_core.mole.plan import BatchPlan
from ramole_core.mole.router import RouterWeights, random_router
from ramole_core.mole.router_examples import (
    Draw,
    Example,
    batches,
    draw_candidates,
    drop_experts,
    split,
    training_adapters,
)
from ramole_core.mole.router_loss import RouterLoss
from ramole_core.mole.router_setup import RouterRecipe
from ramole_core.mole.router_training import estimate, train_router
from ramole_core.settings import Settings
from tests.zoo_store import one_sided_records

from .tiny import DictRouters, DictSource, random_adapter, tiny_model

CPU = torch.device("cpu")
REFS = [AdapterRef(f"a{i}", 1) for i in range(4)]
RANKS = (4, 2, 8, 3)
TAU = 0.2


def workbench(kind="llama", capacity=8, dtype=torch.float32):
    """A model under its layers, and a bank of four adapters; the third leaves one linear out."""
    model = tiny_model(kind).to(dtype)
    targets = target_shapes(model)
    adapters = {
        ref: random_adapter(targets, rank, i, 0.3)
        for i, (ref, rank) in enumerate(zip(REFS, RANKS, strict=True))
    }
    del adapters[REFS[2]].pairs[next(iter(targets))]
    mole = attach(model)
    bank = AdapterBank(targets, capacity, DictSource(adapters), CPU, dtype, mole.groups)
    return mole, bank, adapters


def similarities(seed):
    rng = random.Random(seed)
    return {ref: rng.uniform(0.1, 0.9) for ref in REFS}


# Draws


def test_dropout_drops_each_expert_with_its_probability_and_keeps_two():
    rng = random.Random(0)
    drawn = [drop_experts(REFS, 0.5, rng) for _ in range(2000)]
    assert all(len(kept) >= 2 for kept in drawn)
    assert all(list(kept) == sorted(kept) for kept in drawn)
    # P(kept) = 1/2, and a little more: of the 5/16 draws with one or none, others come back.
    expected = (1 / 16 * 2 + 4 / 16 * 2 + 6 / 16 * 2 + 4 / 16 * 3 + 1 / 16 * 4) / 4
    for ref in REFS:
        assert abs(sum(ref in kept for kept in drawn) / 2000 - expected) < 0.05
    assert drop_experts(REFS, 0.0, rng) == tuple(REFS)
    assert len(drop_experts(REFS[:2], 0.99, rng)) == 2


def test_candidates_are_all_or_the_own_one_and_others():
    rng = random.Random(0)
    assert draw_candidates(REFS[2], REFS, None, rng) == tuple(REFS)
    drawn = [draw_candidates(REFS[2], REFS, 2, rng) for _ in range(100)]
    assert all(len(c) == 2 and REFS[2] in c for c in drawn)
    assert {ref for c in drawn for ref in c} == set(REFS)


def test_a_slice_of_every_adapter_is_held_out():
    items = [Example((i,), (1,), ref) for ref in REFS for i in range(25)]
    items += [Example((i,), (1,), AdapterRef("few", 1)) for i in range(2)]
    learned, held_out = split(items, 0.1, random.Random(0))
    assert len(learned) + len(held_out) == len(items)
    assert [sum(e.own == ref for e in held_out) for ref in REFS] == [2] * 4
    assert sum(e.own.name == "few" for e in held_out) == 1
    assert not {(e.own, e.prompt_ids) for e in learned} & {(e.own, e.prompt_ids) for e in held_out}


def test_every_example_comes_once_before_any_comes_again():
    drawn = batches(range(10), 4, random.Random(0))
    flat = [item for _ in range(5) for item in next(drawn)]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert len(next(batches(range(3), 16, random.Random(0)))) == 3


def test_too_few_examples_are_refused():
    one = [Example((1,), (1,), REFS[0])] * 3
    with pytest.raises(InvalidInputError, match="examples of 1 adapters: a router needs two"):
        training_adapters(one)
    with pytest.raises(InvalidInputError, match="adapter a1@1 has 1 example"):
        training_adapters([*one, Example((1,), (1,), REFS[1])])


# The loss against the equations written out


class SlowMole(nn.Module):
    """RAMoLE eqs. 6-11, every v_i materialised; differentiable."""

    def __init__(self, base, pairs, router, log_prior):
        super().__init__()
        self.base, self.pairs, self.router, self.log_prior = base, pairs, router, log_prior

    def forward(self, x):
        width = self.base.weight.shape[0]
        v = [x @ p.a.T @ p.b.T if p else x.new_zeros(*x.shape[:2], width) for p in self.pairs]
        v = torch.stack(v, -2)  # (1, T, K, D_out)
        scores = self.log_prior
        if self.router is not None:
            a_r, b_r = self.router
            q, key = x @ a_r.T, v @ b_r  # (1, T, R_r), (1, T, K, R_r)
            scores = scores + (q[..., None, :] * key).sum(-1) / math.sqrt(a_r.shape[0])
        alpha = torch.softmax(scores.expand(v.shape[:-1]), -1)
        return self.base(x) + (alpha[..., None] * v).sum(-2)


def slow_loss(draws, adapters, pairs, prior, kind="llama"):
    total = 0.0
    for draw in draws:
        model = copy.deepcopy(tiny_model(kind))
        known = torch.tensor([draw.example.similarities[ref] for ref in draw.experts])
        log_prior = torch.log_softmax(known / TAU, -1) if prior else torch.zeros(len(known))
        for name, linear in target_linears(model).items():
            own = [adapters[ref].pairs.get(name) for ref in draw.experts]
            parent, _, child = name.rpartition(".")
            slow = SlowMole(linear, own, pairs.get(name), log_prior)
            setattr(model.get_submodule(parent), child, slow)
        ids = [*draw.example.prompt_ids, *draw.example.target_ids]
        logits = model(torch.tensor([ids[:-1]])).logits[0]
        num = len(draw.example.target_ids)
        total = total + cross_entropy(logits[-num:], torch.tensor(ids[-num:]), reduction="sum")
    return total


def parameters(targets, seed=3):
    drawn = random_router(targets, 3, torch.Generator().manual_seed(seed)).pairs
    return {n: (nn.Parameter(a), nn.Parameter(b)) for n, (a, b) in drawn.items()}


@pytest.mark.parametrize("kind", ["llama", "gemma", "gptneox"])
@pytest.mark.parametrize("prior", [True, False])
def test_loss_and_gradient_are_those_of_the_equations(prior, kind):
    mole, bank, adapters = workbench(kind)
    for ref in REFS:
        bank.acquire(ref)
    some = [
        Example((5, 9, 200, 31), (7, 8, 258), REFS[0], similarities(0)),
        Example((1, 2), (3, 258), REFS[1], similarities(1)),
        Example((90, 91, 92, 93, 94, 95), (96,), REFS[2], similarities(2)),
    ]
    kept = [(REFS[0], REFS[2]), tuple(REFS), (REFS[1], REFS[2], REFS[3])]
    draws = [Draw(e, tuple(REFS), experts) for e, experts in zip(some, kept, strict=True)]
    fast, slow = (parameters(dict(list(mole.targets.items())[:-1])) for _ in range(2))
    total, num_tokens = RouterLoss(mole, bank, prior, TAU)(draws, fast)
    expected = slow_loss(draws, adapters, slow, prior, kind)
    assert num_tokens == 6
    torch.testing.assert_close(total, expected)
    total.backward()
    expected.backward()
    for name, pair in fast.items():
        for side, other in zip(pair, slow[name], strict=True):
            size = other.grad.abs().max().item()
            torch.testing.assert_close(side.grad, other.grad, rtol=1e-3, atol=1e-4 * size)
            assert size > 0
    assert all(p.grad is None and not p.requires_grad for p in mole.model.parameters())


# Training


def own_answer(mole, bank, prompt, ref, length=3):
    """What the model says with one adapter alone, greedily."""
    ids = list(prompt)
    packed = bank.pack([ref])
    for _ in range(length):
        plan = BatchPlan.of_batch([Mix("mixture", (ref,))], len(ids), packed, CPU)
        with torch.no_grad(), mole.running(plan):
            ids.append(int(mole.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def toy(mole, bank, count=12, prior=False):
    """Prompts that tell their adapter by their tokens; the answers are that adapter's own."""
    rng = random.Random(0)
    found = []
    for i, ref in enumerate(REFS[:3]):
        bank.acquire(ref)
        for j in range(count):
            prompt = tuple(i * 60 + rng.randrange(20) for _ in range(4))
            target = own_answer(mole, bank, prompt, ref)
            known = similarities(j) if prior else {}
            found.append(Example(prompt, target, ref, known))
        bank.release(ref)
    return found


def train(recipe, prior=False, count=12, **more):
    mole, bank, _ = workbench()
    examples = toy(mole, bank, count, prior)
    return mole, bank, train_router(mole, bank, examples, recipe, "b", "now", **more)


RECIPE = RouterRecipe(rank=8, steps=20, batch_size=12, dropout=0.0, seed=1)


def test_training_keeps_its_best_weights_and_says_what_it_did():
    steps = []
    _, _, trained = train(RECIPE, count=30, report=steps.append)
    card = trained.weights.card
    losses = dict(trained.held_out)
    assert list(losses) == [0, 10, 20] and trained.stopped_by == "steps"
    assert card.held_out_before == losses[0]
    assert card.held_out_after == losses[card.steps] == min(losses.values()) < losses[0]
    assert trained.better
    assert [(s.number, s.of) for s in steps] == [(i + 1, 20) for i in range(20)]
    assert steps[9].held_out == losses[10]
    assert card.adapters == ("a0@1", "a1@1", "a2@1") and (card.prior, card.encoder) == (False, None)


class Shipped:
    def load(self, ref):
        return load_lora(zoo.adapter_path(ref.name))


def test_the_adapter_that_is_right_is_found_among_three_of_the_zoo():
    base = load_base(Settings())
    examples = [
        Example(
            tuple(base.codec.encode_prompt(line["prompt"])),
            tuple(base.codec.encode_target(line["target"])),
            AdapterRef(line["adapter"], 1),
        )
        for line in one_sided_records()
    ]
    mole = attach(base.model)
    bank = AdapterBank(base.targets, 8, Shipped(), base.device, base.dtype, mole.groups)
    recipe = RouterRecipe(steps=10, batch_size=8, learning_rate=1e-2, dropout=0.0)
    trained = train_router(mole, bank, examples, recipe, "b", "now")
    card = trained.weights.card
    assert card.held_out_after < 0.5 * card.held_out_before


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    recipe = RouterRecipe(rank=2, steps=3, batch_size=4, seed=5)
    first, again = (train(recipe)[2].weights for _ in range(2))
    assert first.to_files() == again.to_files()
    other = train(RouterRecipe(rank=2, steps=3, batch_size=4, seed=6))[2].weights
    assert first.to_files() != other.to_files()


def own_weights(bank, ref):
    """A new copy of what the bank holds of an adapter in use."""
    bank.free_unused()  # kept packs too
    groups = bank.pack([ref]).groups.values()
    return [side for group in groups for side in (group.a, *group.b)]


def test_base_and_adapters_are_bit_identical_afterwards():
    mole, bank, adapters = workbench()
    examples = toy(mole, bank)
    before = copy.deepcopy(mole.model.state_dict())
    bank.acquire(REFS[0])
    kept = own_weights(bank, REFS[0])
    train_router(mole, bank, examples, RouterRecipe(steps=2), "b", "now")
    assert all(torch.equal(before[name], value) for name, value in mole.model.state_dict().items())
    assert all(map(torch.equal, own_weights(bank, REFS[0]), kept))
    assert mole.holder.plan is None


def test_a_trained_router_scores_in_the_layer_as_it_did_in_training(tmp_path):
    recipe = RouterRecipe(rank=4, steps=10, learning_rate=2e-2, encoder="e", tau=TAU)
    mole, bank, trained = train(recipe, prior=True)
    trained.weights.save(tmp_path / "r")
    routers = DictRouters({"r": RouterWeights.load(tmp_path / "r")})
    serving = AdapterBank(mole.targets, 8, bank.source, CPU, torch.float32, mole.groups, routers)
    example = Example((5, 9, 200), (7, 8), REFS[0], similarities(0))
    for ref in REFS[:3]:
        bank.acquire(ref)
        serving.acquire(ref)
    known = tuple(example.similarities[ref] for ref in REFS[:3])
    mix = Mix("mole", tuple(REFS[:3]), known, router="r", tau=TAU)
    with (
        torch.inference_mode(),
        mole.running(BatchPlan.of_batch([mix], 4, serving.pack(REFS[:3], "r"), CPU)),
    ):
        logits = mole.model(torch.tensor([[5, 9, 200, 7]])).logits[0]
    expected = cross_entropy(logits[-2:], torch.tensor([7, 8]), reduction="sum")
    draw = Draw(example, tuple(REFS[:3]), tuple(REFS[:3]))
    loss, _ = RouterLoss(mole, bank, True, TAU)([draw], trained.weights.pairs)
    torch.testing.assert_close(loss.detach(), expected)
    assert trained.weights.card.prior and trained.weights.card.encoder == "e"


def test_training_ends_when_the_held_out_loss_stalls():
    recipe = RouterRecipe(rank=2, steps=1000, learning_rate=0.5, batch_size=4, patience=2)
    _, _, trained = train(recipe)
    assert trained.stopped_by == "patience"
    losses = [loss for _, loss in trained.held_out]
    assert min(losses) not in losses[-2:]


def test_a_router_that_is_no_better_than_the_one_in_use_says_so():
    _, _, first = train(RECIPE, count=30)
    assert first.better and first.serving is None
    _, _, again = train(RECIPE, count=30, serving=first.weights)
    assert again.serving == pytest.approx(first.weights.card.held_out_after)
    assert not again.better


def test_bfloat16_models_train_a_float32_router():
    mole, bank, _ = workbench(dtype=torch.bfloat16)
    trained = train_router(mole, bank, toy(mole, bank), RouterRecipe(steps=2), "b", "now")
    assert all(side.dtype == torch.float32 for p in trained.weights.pairs.values() for side in p)


def test_a_divergence_ends_the_training():
    with pytest.raises(InvalidInputError, match="smaller learning rate"):
        train(RouterRecipe(steps=50, learning_rate=1e30))


def test_more_adapters_than_the_bank_holds_are_refused():
    mole, bank, _ = workbench(capacity=2)
    examples = [Example((1, 2), (3,), ref) for ref in REFS[:3]] * 2
    with pytest.raises(InvalidInputError, match="RAMOLE_BANK_SIZE"):
        train_router(mole, bank, examples, RouterRecipe(), "b", "now")


def test_an_estimate_counts_parameters_and_changes_nothing():
    mole, bank, _ = workbench()
    ticks = iter([10.0, 12.0])
    found = estimate(mole, bank, toy(mole, bank), RouterRecipe(rank=2), lambda: next(ticks))
    assert found.num_parameters == sum(2 * (o + i) for o, i in mole.targets.values())
    assert 300 <= found.seconds <= 400  # 150 steps of two seconds, and the measurements
    bank.free_unused()
    assert len(bank) == 0  # none is still pinned
