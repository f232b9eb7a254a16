"""The bounded pool: pins, eviction, what is wanted first, what does not fit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.errors import PromptError
from ramole_core.mole.bank import AdapterBank, BankFullError

from .tiny import DictSource, random_adapter

TARGETS = {"x": (6, 5), "y": (4, 6)}
REFS = [AdapterRef(f"a{i}", 1) for i in range(8)]
ADAPTERS = {ref: random_adapter(TARGETS, i % 3 + 1, i) for i, ref in enumerate(REFS)}
BROKEN = AdapterRef("broken", 1)  # the source has none of this name


def new_bank(capacity=3, adapters=None):
    source = DictSource(dict(ADAPTERS if adapters is None else adapters))
    return AdapterBank(TARGETS, capacity, source, torch.device("cpu"), torch.float32)


def use(bank, ref):
    bank.acquire(ref)
    bank.release(ref)


def settle(bank):
    """Until nothing is loading."""
    while bank.wait_for_load(30):
        pass


def here(bank, refs=REFS):
    return [place for place, ref in enumerate(refs) if bank.ready(ref)]


# One at a time


def test_the_least_recently_used_adapter_leaves():
    bank = new_bank()
    for place in (0, 1, 2, 0, 3):
        use(bank, REFS[place])
    assert here(bank) == [0, 2, 3]
    assert bank.source.loads == [REFS[0], REFS[1], REFS[2], REFS[3]]
    assert bank.num_loads == bank.num_waits == 4


def test_an_adapter_in_use_is_never_evicted():
    bank = new_bank()
    bank.acquire(REFS[0])
    bank.acquire(REFS[0])
    bank.release(REFS[0])
    for place in (1, 2, 3, 4):
        use(bank, REFS[place])
    assert bank.ready(REFS[0])
    bank.acquire(REFS[3])
    bank.acquire(REFS[4])
    with pytest.raises(BankFullError):
        bank.acquire(REFS[5])
    bank.release(REFS[3])
    bank.acquire(REFS[5])
    assert not bank.ready(REFS[3])


def test_a_failed_load_changes_nothing():
    bank = new_bank()
    for ref in REFS[:3]:
        use(bank, ref)
    with pytest.raises(KeyError):
        bank.acquire(BROKEN)
    assert here(bank) == [0, 1, 2] and bank.num_loads == 3


@pytest.mark.parametrize("targets", [{"z": (6, 5)}, {"x": (6, 7)}, {"x": (5, 5)}])
def test_an_adapter_for_another_base_model_is_refused(targets):
    bank = new_bank(adapters={REFS[0]: random_adapter(targets, 2, 0)})
    with pytest.raises(PromptError, match="a0@1") as caught:
        bank.acquire(REFS[0])
    assert caught.value.code == "adapter_unfit"
    assert len(bank) == 0


def test_sides_of_different_ranks_are_refused():
    low, high = (random_adapter(TARGETS, rank, 0).pairs["x"] for rank in (2, 3))
    bank = new_bank(adapters={REFS[0]: LoraWeights({"x": LoraPair(low.a, high.b)})})
    with pytest.raises(PromptError) as caught:
        bank.acquire(REFS[0])
    assert caught.value.code == "adapter_unfit"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e5, 1e5])
@pytest.mark.parametrize("side", ["a", "b"])
def test_weights_that_could_leak_into_other_prompts_are_refused(bad, side):
    adapter = random_adapter(TARGETS, 2, 0)
    getattr(adapter.pairs["y"], side)[1, 1] = bad
    bank = new_bank(adapters={REFS[0]: adapter})
    with pytest.raises(PromptError, match="y has a weight"):
        bank.acquire(REFS[0])
    bank.want(REFS[:1])
    settle(bank)
    assert bank.take_failures()[REFS[0]].code == "adapter_unfit"


# Bytes


BYTES = 4 * 21  # of one adapter of rank 1


def full_bank(max_adapters, max_packs=math.inf):
    bank = new_bank(8, {ref: random_adapter(TARGETS, 1, i) for i, ref in enumerate(REFS)})
    bank.limit_bytes(max_adapters, max_packs)
    return bank


def test_what_nobody_uses_leaves_when_the_bytes_are_spent():
    bank = full_bank(3 * BYTES)
    for place in (0, 1, 2, 0, 3):
        use(bank, REFS[place])
    assert here(bank) == [0, 2, 3]


def test_what_is_in_use_or_wanted_stays_however_large_it_is():
    bank = full_bank(BYTES // 2)
    bank.acquire(REFS[0])
    use(bank, REFS[1])
    bank.want(REFS[2:5])
    settle(bank)
    assert here(bank) == [0, 2, 3, 4]
    use(bank, REFS[5])
    assert here(bank) == [0, 2, 3, 4, 5]
    bank.want([REFS[6]])
    settle(bank)
    assert here(bank) == [0, 6]


def test_packs_have_a_bound_in_bytes_of_their_own():
    bank = full_bank(math.inf, 1)
    for ref in REFS:
        bank.acquire(ref)
    bank.pack(REFS[:2])
    assert bank.packed_sets() == [{*REFS[:2]}]
    bank.pack(REFS[2:4])
    assert bank.packed_sets() == [{*REFS[2:4]}]


def test_one_prompt_may_not_need_more_than_the_bank_holds():
    bank = new_bank(capacity=2)
    bank.check_admissible(REFS[:2])
    with pytest.raises(PromptError, match="RAMOLE_BANK_SIZE"):
        bank.check_admissible(REFS[:3])


def test_freeing_gives_up_what_is_not_in_use_and_the_packed_copies():
    bank = new_bank()
    use(bank, REFS[0])
    bank.acquire(REFS[1])
    packed = bank.pack([REFS[1]])
    bank.free_unused()
    assert here(bank) == [1] and bank.packed_sets() == []
    assert bank.pack([REFS[1]]) is not packed


def test_the_size_of_an_adapter_is_known():
    bank = new_bank()
    bank.acquire(REFS[1])  # rank 2
    assert bank.num_numbers(REFS[1]) == 2 * (6 + 5 + 4 + 6)


# What is wanted


def test_what_is_wanted_is_loaded_in_that_order_and_no_more_than_fits():
    bank = new_bank()
    bank.want([REFS[4], REFS[2], REFS[4], REFS[7], REFS[0]])
    settle(bank)
    assert bank.source.loads == [REFS[4], REFS[2], REFS[7]]
    assert here(bank) == [2, 4, 7] and bank.num_loads == 3
    bank.want([REFS[4], REFS[2], REFS[7], REFS[0]])
    assert not bank.wait_for_load(30)  # nothing is loading
    bank.acquire(REFS[2])
    assert bank.num_waits == 0


def test_room_is_made_by_what_nobody_wants_then_by_what_is_wanted_later():
    bank = new_bank(capacity=4)
    for place in (0, 1, 2, 3):
        use(bank, REFS[place])
    bank.want([REFS[5], REFS[0], REFS[2]])
    settle(bank)
    assert here(bank) == [0, 2, 3, 5]  # 1 was used before 3
    bank.want([REFS[6], REFS[5], REFS[7], REFS[0], REFS[2]])
    settle(bank)
    assert here(bank) == [0, 5, 6, 7]  # 3, then the last one that is wanted


def test_what_is_wanted_first_stays_and_what_is_in_use_does():
    bank = new_bank()
    for ref in REFS[:3]:
        bank.acquire(ref)
    bank.want([REFS[5]])
    settle(bank)
    assert here(bank) == [0, 1, 2]
    for ref in REFS[:3]:
        bank.release(ref)
    bank.want([REFS[0], REFS[1], REFS[2], REFS[5]])
    settle(bank)
    assert here(bank) == [0, 1, 2] and bank.num_loads == 3


def test_a_failure_is_handed_out_once_and_tried_again_after_that():
    bank = new_bank()
    for _ in range(2):
        bank.want([BROKEN, REFS[0]])
        settle(bank)
        bank.want([BROKEN])  # nobody knows of it yet: not tried again
        settle(bank)
        [(ref, error)] = bank.take_failures().items()
        assert ref == BROKEN and isinstance(error, KeyError)
        assert bank.take_failures() == {}
    assert bank.source.loads.count(BROKEN) == 2
    assert here(bank) == [0] and len(bank) == 1


def test_acquiring_hands_out_the_failure():
    bank = new_bank()
    bank.want([BROKEN])
    settle(bank)
    with pytest.raises(KeyError):
        bank.acquire(BROKEN)
    assert bank.source.loads == [BROKEN]
    assert bank.take_failures() == {}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("acquire"), st.integers(0, 7)),
            st.tuples(st.just("release"), st.integers(0, 7)),
            st.tuples(st.just("want"), st.lists(st.integers(0, 8), max_size=8)),
            st.tuples(st.sampled_from(["wait", "settle", "free"]), st.none()),
        ),
        max_size=40,
    )
)
def test_never_more_than_the_capacity_and_pins_and_the_first_wanted_stay(steps):
    """Whatever is done in whatever order; the loader runs beside it as it likes."""
    bank, pins = new_bank(), []
    everyone = [*REFS, BROKEN]
    for what, value in steps:
        if what == "acquire" and len({*pins, REFS[value]}) <= 3:
            bank.acquire(REFS[value])
            pins.append(REFS[value])
        elif what == "release" and pins:
            bank.release(pins.pop(value % len(pins)))
        elif what == "want":
            check_want(bank, [everyone[place] for place in value], pins)
        elif what == "wait":
            bank.wait_for_load(0)
        elif what == "settle":
            settle(bank)
        elif what == "free":
            bank.free_unused()
            assert len(bank) == len(set(pins))
        assert len(bank) <= 3
        assert all(bank.ready(ref) for ref in pins)
    settle(bank)
    assert len(bank) <= 3 and set(bank.take_failures()) <= {BROKEN}
    for ref in set(pins) | {r for r in REFS if bank.ready(r)}:
        assert torch.equal(bank.pack([ref]).groups["x"].a, ADAPTERS[ref].pairs["x"].a)


def check_want(bank, refs, pins):
    """The first that fit beside the pinned ones are here once nothing is loading any more."""
    bank.take_failures()
    settle(bank)
    before = here(bank)
    bank.want(refs)
    settle(bank)
    bank.want(refs)  # a failed one has given its room back
    settle(bank)
    distinct = [ref for ref in dict.fromkeys(refs) if ref != BROKEN]
    due = [ref for i, ref in enumerate(distinct) if len({*distinct[: i + 1], *pins}) <= 3]
    assert all(map(bank.ready, due))
    if all(REFS.index(ref) in before for ref in distinct) and BROKEN not in refs:
        assert here(bank) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adapters_on_a_gpu_are_those_on_the_host():
    source = DictSource(dict(ADAPTERS))
    banks = [
        AdapterBank(TARGETS, 3, source, torch.device(device), torch.bfloat16)
        for device in ("cpu", "cuda")
    ]
    for begin in range(6):  # memory of evicted ones is used again
        refs = REFS[begin : begin + 3]
        packs = []
        for bank in banks:
            bank.want(refs)
            settle(bank)
            packs.append(bank.pack(refs).groups["x"])
        assert torch.equal(packs[1].a.cpu(), packs[0].a)
        assert torch.equal(packs[1].b[0].cpu(), packs[0].b[0])
