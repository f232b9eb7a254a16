"""Loading beside the engine's thread: who waits for what, failures of any kind, the end."""

import threading
import weakref

import pytest
import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.bank import AdapterBank, BankFullError
from ramole_core.mole.loader import LoadInterruptedError

from .tiny import random_adapter

TARGETS = {"x": (6, 5)}
A, B, C, D, E = REFS = [AdapterRef(name, 1) for name in "abcde"]
LONG = 30.0  # seconds; never waited for when the code is right


class GatedSource:
    """Every load waits until its adapter is let through."""

    def __init__(self):
        self.gates = {ref: threading.Event() for ref in REFS}
        self.begun = {ref: threading.Event() for ref in REFS}
        self.errors = {}
        self.loads = []
        self.threads = []

    def load(self, ref):
        self.threads.append(threading.current_thread())
        self.loads.append(ref)
        self.begun[ref].set()
        assert self.gates[ref].wait(LONG)
        if ref in self.errors:
            raise self.errors[ref]
        return random_adapter(TARGETS, 2, REFS.index(ref))

    def open(self, *refs):
        for ref in refs:
            self.gates[ref].set()


@pytest.fixture
def source():
    source = GatedSource()
    yield source
    source.open(*REFS)


def new_bank(source, capacity=3):
    return AdapterBank(TARGETS, capacity, source, torch.device("cpu"), torch.float32)


def want_and_begin(bank, *refs):
    """Returns when the first of them is being read."""
    bank.want(refs)
    assert bank.source.begun[refs[0]].wait(LONG)


def settle(bank):
    while bank.wait_for_load(LONG):
        pass


def here(bank):
    return [ref for ref in REFS if bank.ready(ref)]


def test_wanting_and_asking_wait_for_nothing(source):
    bank = new_bank(source)
    want_and_begin(bank, A, B)
    bank.want([A, B])
    assert not bank.ready(A) and len(bank) == 0 and bank.take_failures() == {}
    assert not bank.wait_for_load(0)  # the time is up
    source.open(A)
    assert bank.wait_for_load(LONG)
    assert here(bank) == [A]
    source.open(B)
    settle(bank)
    assert here(bank) == [A, B] and source.loads == [A, B]
    assert threading.current_thread() not in source.threads


def test_the_newest_order_counts_for_what_has_not_begun(source):
    bank = new_bank(source)
    want_and_begin(bank, A, B, C)
    bank.want([D, C])  # neither A, which has begun, nor B
    source.open(*REFS)
    settle(bank)
    assert source.loads == [A, D, C] and here(bank) == [A, C, D]


def test_what_is_on_its_way_counts_as_in_the_bank(source):
    bank = new_bank(source, capacity=2)
    source.open(A)
    bank.acquire(A)
    want_and_begin(bank, B, C, D)
    assert bank.pack([A]).experts == (A,)
    source.open(*REFS)
    settle(bank)
    assert source.loads == [A, B] and here(bank) == [A, B]


def test_acquiring_waits_for_a_load_on_its_way_and_does_not_repeat_it(source):
    bank = new_bank(source)
    want_and_begin(bank, A)
    timer = threading.Thread(target=source.open, args=(A,))
    timer.start()
    bank.acquire(A)
    timer.join()
    assert source.loads == [A] and bank.num_waits == 1 and bank.ready(A)


def test_acquiring_does_not_wait_behind_what_others_wait_for(source):
    bank = new_bank(source)
    want_and_begin(bank, A, B, C)
    source.open(C)
    bank.acquire(C)  # A is still being read
    assert bank.ready(C) and not bank.ready(A) and source.loads == [A, C]
    bank.want([A, B])
    source.open(A, B)
    settle(bank)
    assert here(bank) == [A, B, C] and source.loads == [A, C, B]


def test_acquiring_evicts_a_load_that_took_the_last_room(source):
    bank = new_bank(source, capacity=2)
    source.open(A, C)
    bank.acquire(A)
    want_and_begin(bank, B)
    source.open(B)
    bank.acquire(C)
    assert here(bank) == [A, C] and len(bank) == 2
    with pytest.raises(BankFullError):
        source.open(D)
        bank.acquire(D)


@pytest.mark.parametrize(
    "error", [ValueError("bad"), MemoryError(), SystemExit(3), KeyboardInterrupt()]
)
def test_whatever_a_load_raises_is_its_own_outcome(source, error):
    bank = new_bank(source)
    source.errors[A] = error
    want_and_begin(bank, A, B)
    source.open(A, B)
    settle(bank)
    assert here(bank) == [B]  # the loader goes on
    [(ref, failure)] = bank.take_failures().items()
    assert ref == A
    if isinstance(error, Exception):
        assert failure is error
    else:
        assert isinstance(failure, LoadInterruptedError) and failure.__cause__ is error
        assert type(error).__name__ in str(failure)
    del source.errors[A]
    bank.want([A])
    settle(bank)
    assert here(bank) == [A, B]


def test_a_failure_does_not_keep_what_was_read(source):
    read = []

    def load(ref):
        weights = random_adapter(TARGETS, 2, 0)
        read.append(weakref.ref(weights))
        raise ValueError("bad")

    source.load = load
    bank = new_bank(source)
    bank.want([A])
    settle(bank)
    failure = bank.take_failures()[A]
    assert str(failure) == "bad" and read[0]() is None


def test_acquiring_raises_what_the_load_on_its_way_raises(source):
    bank = new_bank(source)
    source.errors[A] = ValueError("bad")
    want_and_begin(bank, A)
    source.open(A)
    with pytest.raises(ValueError, match="bad"):
        bank.acquire(A)
    assert bank.take_failures() == {}


def test_closing_waits_for_the_load_that_has_begun_and_drops_the_rest(source):
    bank = new_bank(source)
    want_and_begin(bank, A, B)
    bank.close(seconds=0)  # the source hangs: not for ever
    assert here(bank) == []
    source.open(*REFS)
    bank.close()
    assert here(bank) == [A] and source.loads == [A]
    source.threads[0].join(LONG)
    assert not source.threads[0].is_alive()


def test_no_thread_outlives_its_work_and_a_later_wish_starts_another(source):
    source.open(*REFS)
    bank = new_bank(source)
    for ref in (A, B):
        bank.want([ref])
        settle(bank)
        source.threads[-1].join(LONG)
        assert not source.threads[-1].is_alive()
    assert here(bank) == [A, B]
    bank.close()


def test_many_wishes_while_loads_come_in_lose_none(source):
    source.open(*REFS)
    bank = new_bank(source, capacity=5)
    for _ in range(200):
        bank.free_unused()
        while len(here(bank)) < 5:
            bank.want(REFS)
            bank.wait_for_load(LONG)
    assert bank.num_loads == len(source.loads)


def test_how_long_a_load_takes_is_known_while_it_does(source):
    now = [100.0]
    bank = new_bank(source)
    bank._loader._clock = lambda: now[0]
    assert bank.loading_seconds() == 0
    want_and_begin(bank, A, B)
    now[0] += 7
    assert bank.loading_seconds() == 7
    source.open(A)
    assert source.begun[B].wait(LONG)
    assert bank.loading_seconds() == 0
    source.open(B)
    settle(bank)
    now[0] += 7
    assert bank.loading_seconds() == 0
