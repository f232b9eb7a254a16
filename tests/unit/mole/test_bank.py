"""The bounded pool: pins, eviction, routers, what does not fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import InvalidInputError, PromptError
from ramole_core.mole.bank import AdapterBank, BankFullError
from ramole_core.mole.router import random_router

from .tiny import DictSource, random_adapter

TARGETS = {"x": (6, 5), "y": (4, 6)}
REFS = [AdapterRef(f"a{i}", 1) for i in range(6)]
ADAPTERS = {ref: random_adapter(TARGETS, i % 3 + 1, i) for i, ref in enumerate(REFS)}


def new_bank(capacity=3, adapters=None):
    source = DictSource(dict(ADAPTERS if adapters is None else adapters))
    return AdapterBank(TARGETS, capacity, source, torch.device("cpu"), torch.float32)


def use(bank, ref):
    bank.acquire(ref)
    bank.release(ref)


def test_the_least_recently_used_adapter_leaves():
    bank = new_bank()
    for place in (0, 1, 2, 0, 3):
        use(bank, REFS[place])
    assert [ref in bank for ref in REFS[:4]] == [True, False, True, True]
    assert bank.source.loads == [REFS[0], REFS[1], REFS[2], REFS[3]]


def test_an_adapter_in_use_is_never_evicted():
    bank = new_bank()
    bank.acquire(REFS[0])
    bank.acquire(REFS[0])
    bank.release(REFS[0])
    for place in (1, 2, 3, 4):
        use(bank, REFS[place])
    assert REFS[0] in bank
    bank.acquire(REFS[3])
    bank.acquire(REFS[4])
    with pytest.raises(BankFullError):
        bank.acquire(REFS[5])
    bank.release(REFS[3])
    bank.acquire(REFS[5])
    assert REFS[3] not in bank


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_never_more_than_the_capacity_and_pins_hold(steps):
    bank, pins = new_bank(), []
    for place, pin in steps:
        ref = REFS[place]
        if pin and len({*pins, ref}) <= 3:
            bank.acquire(ref)
            pins.append(ref)
        elif not pin and pins:
            bank.release(pins.pop(0))
        assert len(bank) <= 3
        assert all(pinned in bank for pinned in pins)


def test_a_failed_load_changes_nothing():
    bank = new_bank(adapters={ref: ADAPTERS[ref] for ref in REFS[:3]})
    for ref in REFS[:3]:
        use(bank, ref)
    with pytest.raises(KeyError):
        bank.acquire(REFS[4])
    assert all(ref in bank for ref in REFS[:3])


@pytest.mark.parametrize("targets", [{"z": (6, 5)}, {"x": (6, 7)}, {"x": (5, 5)}])
def test_an_adapter_for_another_base_model_is_refused(targets):
    bank = new_bank(adapters={REFS[0]: random_adapter(targets, 2, 0)})
    with pytest.raises(PromptError, match="a0@1") as caught:
        bank.acquire(REFS[0])
    assert caught.value.code == "adapter_unfit"
    assert len(bank) == 0


def test_one_prompt_may_not_need_more_than_the_bank_holds():
    bank = new_bank(capacity=2)
    bank.check_admissible(REFS[:2])
    with pytest.raises(PromptError, match="RAMOLE_BANK_SIZE"):
        bank.check_admissible(REFS[:3])


def test_packing_puts_different_ranks_side_by_side():
    bank = new_bank()
    for ref in REFS[:3]:
        bank.acquire(ref)
    packed = bank.pack([REFS[2], REFS[0], REFS[1], REFS[0]])
    assert packed.experts == tuple(REFS[:3])
    linear = packed.linears["x"]
    assert (linear.a.shape, linear.b.shape) == ((6, 5), (6, 6))  # ranks 1 + 2 + 3
    assert linear.columns.expert.tolist() == [0, 1, 1, 2, 2, 2]
    assert linear.columns.rank_onehot.argmax(-1).tolist() == [0, 0, 1, 0, 1, 2]
    assert linear.columns is packed.linears["y"].columns
    assert bank.pack(REFS[:3]) is packed
    assert bank.pack(REFS[:2]) is not packed


def test_gram_matrices_follow_the_router_in_use():
    bank = new_bank()
    first, second = (random_router(TARGETS, 2, torch.Generator().manual_seed(s)) for s in (1, 2))
    bank.acquire(REFS[0])
    assert bank.pack(REFS[:1]).linears["x"].gram is None
    for version, router in (("r1", first), ("r2", second)):
        bank.use_router(version, router)
        bank.acquire(REFS[1])  # one adapter before the router came, one after
        packed = bank.pack(REFS[:2])
        b = torch.cat([ADAPTERS[ref].pairs["x"].b for ref in REFS[:2]], dim=1)
        torch.testing.assert_close(packed.linears["x"].gram, router.pairs["x"][1].T @ b)
        assert bank.router_version == version


def test_a_router_for_another_base_model_is_refused_and_the_old_one_stays():
    bank = new_bank()
    bank.use_router("r1", random_router(TARGETS, 2, torch.Generator()))
    for wrong in ({"x": (6, 6)}, {"z": (6, 5)}):
        with pytest.raises(InvalidInputError, match="train a router"):
            bank.use_router("r2", random_router(wrong, 2, torch.Generator()))
    assert bank.router_version == "r1"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e5])
def test_weights_that_could_leak_into_other_prompts_are_refused(bad):
    adapter = random_adapter(TARGETS, 2, 0)
    adapter.pairs["y"].b[1, 1] = bad
    bank = new_bank(adapters={REFS[0]: adapter})
    with pytest.raises(PromptError, match="y has a weight"):
        bank.acquire(REFS[0])


def test_freeing_gives_up_what_is_not_in_use_and_the_packed_copy():
    bank = new_bank()
    use(bank, REFS[0])
    bank.acquire(REFS[1])
    packed = bank.pack([REFS[1]])
    bank.free_unused()
    assert [ref in bank for ref in REFS[:2]] == [False, True]
    assert bank.pack([REFS[1]]) is not packed
