"""Packs against their definition: blocks of A and B, zeros for what is missing, Gram matrices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.packing import PACK_SHARE
from ramole_core.mole.router import random_router

from .tiny import DictRouters, DictSource, random_adapter

CPU = torch.device("cpu")
TARGETS = {"q": (6, 5), "k": (3, 5), "v": (4, 5), "o": (5, 6), "up": (7, 5)}
GROUPS = (("q", "k", "v"), ("o",), ("up",))
REFS = [AdapterRef(f"a{i}", 1) for i in range(4)]


def adapter(ranks, seed):
    """`ranks`: linear -> R, a rank for each linear that the adapter has."""
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: LoraPair(
                torch.randn(rank, TARGETS[name][1], generator=generator),
                torch.randn(TARGETS[name][0], rank, generator=generator),
            )
            for name, rank in ranks.items()
        }
    )


MIXED = {
    REFS[0]: adapter({"q": 2, "k": 1, "v": 2}, 0),
    REFS[1]: adapter({"q": 3, "o": 1}, 1),
    REFS[2]: adapter({"o": 2}, 2),
}


def new_bank(adapters=None, groups=GROUPS, dtype=torch.float32, routers=None, capacity=4):
    source = DictSource(MIXED if adapters is None else adapters)
    bank = AdapterBank(TARGETS, capacity, source, CPU, dtype, groups, DictRouters(routers or {}))
    for ref in source.adapters:
        bank.acquire(ref)
    return bank


def router(seed=0, targets=TARGETS, rank=3):
    return random_router(dict(targets), rank, torch.Generator().manual_seed(seed))


# The definition: a dict (linear, expert) -> (A padded to the expert's rank in the group, Bᵀ alike)


def blocks(group, adapters):
    """({(target, place): (a (R, D_in), bt (R, D_out))}, {place: R}) of the experts in a group."""
    found, ranks = {}, {}
    for place, ref in enumerate(sorted(adapters)):
        pairs = {t: p for t, p in adapters[ref].pairs.items() if t in group}
        if not pairs:
            continue
        ranks[place] = max(pair.rank for pair in pairs.values())
        for target in group:
            a = torch.zeros(ranks[place], TARGETS[target][1])
            bt = torch.zeros(ranks[place], TARGETS[target][0])
            if target in pairs:
                a[: pairs[target].rank] = pairs[target].a
                bt[: pairs[target].rank] = pairs[target].b.T
            found[target, place] = (a, bt)
    return found, ranks


def check_definition(packed, adapters, groups, pairs):
    assert packed.experts == tuple(sorted(adapters))
    everywhere = {t for weights in adapters.values() for t in weights.pairs}
    assert set(packed.groups) == everywhere
    for group in groups:
        present = tuple(t for t in group if t in everywhere)
        if not present:
            continue
        found = packed.groups[present[0]]
        assert found.targets == present
        assert all(packed.groups[t] is found for t in present)
        check_group(found, adapters, present, pairs)


def check_group(found, adapters, present, pairs):
    parts, ranks = blocks(present, adapters)
    a = [parts[t, p][0] for t in present for p in ranks]
    routed = [t for t in present if t in pairs]
    if routed:
        like = pairs[routed[0]][0]
        a += [pairs[t][0] if t in pairs else torch.zeros_like(like) for t in present]
    assert torch.equal(found.a, torch.cat(a))
    for target, b in zip(present, found.b, strict=True):
        assert torch.equal(b.T, torch.cat([parts[target, p][1] for p in ranks]))
    owners = [p for p, rank in ranks.items() for _ in range(rank)]
    rows = [r for rank in ranks.values() for r in range(rank)]
    columns = found.columns
    assert columns.expert.tolist() == owners
    assert columns.expert_onehot.shape == (len(owners), len(adapters))
    assert columns.expert_onehot.argmax(1).tolist() == owners
    assert columns.rank_onehot.shape == (len(rows), max(ranks.values()))
    assert columns.rank_onehot.argmax(1).tolist() == rows
    assert columns.expert_onehot.sum() == columns.rank_onehot.sum() == len(rows)
    check_gram(found, parts, ranks, present, pairs)


def check_gram(found, parts, ranks, present, pairs):
    """Blocks: 0 between two linears, else B_rᵀ B / √R_r."""
    routed = [t for t in present if t in pairs]
    if not routed:
        assert found.gram is None
        return
    rank = pairs[routed[0]][0].shape[0]
    for i, row in enumerate(present):
        for j, column in enumerate(present):
            width = sum(ranks.values())
            block = found.gram[i * rank : (i + 1) * rank, j * width : (j + 1) * width]
            if i != j or row not in pairs:
                assert not block.any()
                continue
            bt = torch.cat([parts[column, p][1] for p in ranks])
            torch.testing.assert_close(block, pairs[row][1].T @ bt.T / math.sqrt(rank))
    size = len(present)
    assert found.gram.shape == (size * rank, size * sum(ranks.values()))
    assert found.gram.dtype == torch.float32


@st.composite
def zoos(draw):
    """(adapters with any ranks and linears, a grouping, the linears that the router has)."""
    adapters = {
        ref: adapter(
            draw(st.dictionaries(st.sampled_from(sorted(TARGETS)), st.integers(1, 3), min_size=1)),
            seed,
        )
        for seed, ref in enumerate(REFS[: draw(st.integers(1, 4))])
    }
    groups = draw(
        st.sampled_from([GROUPS, tuple((t,) for t in TARGETS), (("q", "k", "v", "up"), "o")])
    )
    return adapters, groups, draw(st.sets(st.sampled_from(sorted(TARGETS))))


@settings(deadline=None, max_examples=60)
@given(zoos())
def test_a_pack_is_its_definition(zoo):
    adapters, groups, routed = zoo
    weights = router(targets={t: TARGETS[t] for t in sorted(routed)})
    bank = new_bank(adapters, groups, routers={"r": weights})
    refs = list(adapters)[::-1]
    plain = bank.pack(refs)
    assert plain.router is None
    check_definition(plain, adapters, groups, {})
    under = bank.pack(refs, "r")
    assert under.router == "r"
    check_definition(under, adapters, groups, weights.pairs)
    check_definition(plain.with_router(weights.pairs), adapters, groups, weights.pairs)


def test_a_linear_that_no_expert_has_is_left_out():
    packed = new_bank().pack(REFS[1:3])
    assert packed.groups["q"].targets == ("q",) and set(packed.groups) == {"q", "o"}
    assert packed.groups["q"].columns.expert.tolist() == [0, 0, 0]  # a2 has no column here
    assert packed.groups["o"].columns.expert.tolist() == [0, 1, 1]


def test_groups_with_equal_ranks_share_their_columns():
    bank = new_bank({ref: random_adapter(TARGETS, 2, i) for i, ref in enumerate(REFS)})
    packed = bank.pack(REFS)
    assert packed.groups["q"] is not packed.groups["o"]
    assert packed.groups["q"].columns is packed.groups["o"].columns


def test_a_router_takes_the_place_of_another():
    bank = new_bank(routers={"r1": router(1), "r2": router(2, {"q": TARGETS["q"]}, rank=1)})
    check_definition(bank.pack(REFS[:3], "r1"), MIXED, GROUPS, router(1).pairs)
    again = bank.pack(REFS[:3], "r1").with_router(bank.router("r2").pairs)
    check_definition(again, MIXED, GROUPS, router(2, {"q": TARGETS["q"]}, rank=1).pairs)
    check_definition(again.with_router({}), MIXED, GROUPS, {})


def test_the_gradient_reaches_the_router_through_rows_and_gram():
    pairs = {t: (a.requires_grad_(), b.requires_grad_()) for t, (a, b) in router().pairs.items()}
    with torch.inference_mode():  # whoever made the pack first
        plain = new_bank().pack(REFS[:3])
    found = plain.with_router(pairs).groups["q"]
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    width = len(found.columns.expert)
    h = x @ found.a.T  # (4, 3 S + 3 R_r)
    score = (torch.tanh(h[:, 3 * width :] @ found.gram) * h[:, : 3 * width]).sum()
    score.backward()
    for target in found.targets:
        a, b = (side.detach().clone().requires_grad_() for side in pairs[target])
        parts, ranks = blocks(found.targets, {ref: MIXED[ref] for ref in REFS[:3]})
        experts = torch.cat([parts[target, p][0] for p in ranks])  # (S, 5)
        bt = torch.cat([parts[target, p][1] for p in ranks])  # (S, D_out)
        q = x @ a.T
        (torch.tanh(q @ b.T @ bt.T / math.sqrt(3)) * (x @ experts.T)).sum().backward()
        torch.testing.assert_close(pairs[target][0].grad, a.grad)
        torch.testing.assert_close(pairs[target][1].grad, b.grad)
        assert a.grad.any() and b.grad.any()
    assert pairs["up"][0].grad is None


def test_a_router_is_rounded_as_the_model_is_and_its_gram_is_not():
    bank = new_bank(dtype=torch.bfloat16, routers={"r": router()})
    found = bank.pack(REFS[:1], "r").groups["q"]
    assert found.a.dtype == found.b[0].dtype == torch.bfloat16
    b_r = router().pairs["q"][1].bfloat16().float()
    bt = MIXED[REFS[0]].pairs["q"].b.T.bfloat16().float()
    torch.testing.assert_close(found.gram[:3, :2], b_r.T @ bt.T / math.sqrt(3))
    trained = bank.pack(REFS[:1]).with_router(router().pairs).groups["q"]  # float32 pairs
    assert trained.a.dtype == torch.bfloat16
    assert torch.equal(trained.a, found.a) and torch.equal(trained.gram, found.gram)


# The cache of packs


def test_equal_experts_and_router_are_packed_once():
    bank = new_bank(routers={"r": router()}, capacity=16)  # so many packs may be kept
    plain = bank.pack(REFS[:2])
    under = bank.pack(REFS[:2], "r")
    assert bank.pack([REFS[1], REFS[0], REFS[1]]) is plain
    assert bank.pack(REFS[:2], "r") is under
    assert bank.pack(REFS[:1]) is not plain
    assert bank.packed_sets() == [frozenset(REFS[:1]), frozenset(REFS[:2])]
    assert bank.packed_sets("r") == [frozenset(REFS[:2])]
    assert bank.packed_sets("other") == []


def test_packs_used_long_ago_leave_and_the_newest_stays():
    one = {ref: random_adapter(TARGETS, 2, i) for i, ref in enumerate(REFS)}
    bank = new_bank(one)
    pairs = [(REFS[i], REFS[j]) for i in range(4) for j in range(i)]
    for i, refs in enumerate(pairs):  # each half of a full bank, which may be kept twice
        bank.pack(refs)
        bank.pack(pairs[0])
        assert len(bank.packed_sets()) == min(i + 1, 4)
    assert bank.packed_sets() == [frozenset(p) for p in (pairs[0], pairs[5], pairs[4], pairs[3])]


def test_a_pack_that_is_larger_than_all_may_be_is_kept_until_the_next():
    bank = new_bank({REFS[0]: MIXED[REFS[2]]}, capacity=1, routers={"r": router(rank=9)})
    packed = bank.pack(REFS[:1], "r")
    assert packed.num_bytes > PACK_SHARE * 4 * bank.num_numbers(REFS[0])
    assert bank.pack(REFS[:1], "r") is packed
    bank.pack(REFS[:1])
    assert bank.packed_sets("r") == []


def test_a_pack_outlives_its_adapters_and_is_right_when_they_come_again():
    bank = new_bank({REFS[0]: MIXED[REFS[0]]}, capacity=1)
    bank.source.adapters = MIXED
    packed = bank.pack([REFS[0]])
    kept = packed.groups["q"].a.clone()
    bank.release(REFS[0])
    bank.acquire(REFS[1])
    assert not bank.ready(REFS[0]) and torch.equal(packed.groups["q"].a, kept)
    assert bank.packed_sets() == []  # nobody may plan with what is not here
    bank.release(REFS[1])
    bank.acquire(REFS[0])
    assert bank.packed_sets() == [frozenset(REFS[:1])]
    assert torch.equal(bank.pack([REFS[0]]).groups["q"].a, kept)


def test_bytes_of_a_pack_count_shared_groups_once():
    packed = new_bank().pack(REFS[:3])
    q, o = packed.groups["q"], packed.groups["o"]
    numbers = sum(t.numel() for t in (q.a, *q.b, o.a, *o.b))
    assert packed.num_bytes == 4 * numbers


# Routers


def test_routers_in_alternate_use_are_read_once():
    source = DictRouters({f"r{i}": router(i) for i in range(4)})
    bank = AdapterBank(TARGETS, 1, DictSource({}), CPU, torch.bfloat16, GROUPS, source)
    held = bank.router("r0")
    for version in ("r1", "r2", "r1", "r3", "r1", "r3"):
        bank.router(version)
    assert source.loads == ["r0", "r1", "r2", "r3"]
    assert bank.router("r0") is held and held.version == "r0"
    assert held.pairs["q"][0].dtype == torch.bfloat16
    bank.router("r2")
    assert source.loads[4:] == ["r2"]  # two others came since, and nobody held it


def test_freeing_keeps_the_routers_that_somebody_holds():
    source = DictRouters({"r0": router(0), "r1": router(1)})
    bank = AdapterBank(TARGETS, 1, DictSource({}), CPU, torch.float32, GROUPS, source)
    held = bank.router("r0")
    bank.router("r1")
    bank.free_unused()
    assert bank.router("r0") is held
    bank.router("r1")
    assert source.loads == ["r0", "r1", "r1"]


@pytest.mark.parametrize("wrong", [{"q": (6, 6)}, {"z": (6, 5)}])
def test_a_router_for_another_base_model_is_refused(wrong):
    bank = new_bank(routers={"bad": router(0, wrong), "good": router()})
    good = bank.router("good")
    with pytest.raises(InvalidInputError, match="train a router"):
        bank.pack(REFS[:1], "bad")
    assert bank.router("good") is good


def test_a_bank_without_routers_says_so():
    bank = AdapterBank(TARGETS, 1, DictSource({}), CPU, torch.float32)
    with pytest.raises(NotFoundError, match="router r"):
        bank.router("r")
