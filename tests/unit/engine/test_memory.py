"""The memory plan: never more than there is, room for one prompt, one line that says it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.engine import memory
from ramole_core.engine.memory import (
    CPU_SHARE,
    CUDA_SHARE,
    LEAST_TOKENS,
    MAX_TOKENS,
    MemoryNeeds,
    memory_plan,
    plan_memory,
)
from ramole_core.engine.model import NO_LIMIT, describe_base
from ramole_core.errors import ConfigError
from ramole_core.mole.attach import attach
from ramole_core.mole.packing import PACK_SHARE
from ramole_core.settings import Settings

from ..mole.tiny import tiny_model
from .tiny import byte_tokenizer, tiny_engine

MIB, GIB = 2**20, 2**30
NEEDS = MemoryNeeds(
    weights_bytes=2 * GIB,
    activation_bytes=GIB,
    token_bytes=32 * 1024,
    adapter_bytes=16 * MIB,
    batch_size=32,
    bank_size=64,
    context_tokens=8192,
    max_batch_tokens=0,
)
MOST = 32 * 8192  # tokens: 8 GiB

any_needs = st.builds(
    MemoryNeeds,
    weights_bytes=st.integers(0, 1 << 40),
    activation_bytes=st.integers(0, 1 << 36),
    token_bytes=st.integers(1, 1 << 22),
    adapter_bytes=st.integers(1, 1 << 32),
    batch_size=st.integers(1, 4096),
    bank_size=st.integers(1, 65536),
    context_tokens=st.integers(1, NO_LIMIT),
    max_batch_tokens=st.just(0) | st.integers(256, 1 << 30),
)
any_spare = st.integers(0, 1 << 42)
any_share = st.sampled_from([CPU_SHARE, CUDA_SHARE])


def plan(free, needs=NEEDS, share=1.0):
    return plan_memory(needs, free, share, "cpu")


def least_bytes(needs):
    """Of the smallest plan: a forward and one prompt."""
    tokens = min(LEAST_TOKENS, needs.batch_size * needs.context_tokens)
    return needs.activation_bytes + tokens * needs.token_bytes


def enough(needs, share, spare):
    """Free bytes for the smallest plan and `spare` more, in the share."""
    return math.ceil((least_bytes(needs) + spare) / share) + 1


@settings(deadline=None)
@given(any_needs, any_spare, any_share)
def test_what_is_planned_is_there(needs, spare, share):
    free = enough(needs, share, spare)
    found = plan(free, needs, share)
    assert found.total_bytes <= needs.weights_bytes + free * share
    assert found.available_bytes == needs.weights_bytes + free
    batch_tokens = needs.batch_size * needs.context_tokens
    assert min(LEAST_TOKENS, batch_tokens) <= found.max_batch_tokens <= batch_tokens
    assert found.max_batch_tokens <= (needs.max_batch_tokens or MAX_TOKENS)
    assert 0 <= found.num_adapters <= needs.bank_size
    fixed = needs.weights_bytes + needs.activation_bytes + found.cache_bytes
    room = found.max_bank_bytes + found.max_packs_bytes
    assert fixed + room <= needs.weights_bytes + free * share
    assert room >= found.bank_bytes + found.packs_bytes


@settings(deadline=None)
@given(any_needs, any_share, st.floats(0, 0.999))
def test_a_model_that_leaves_no_room_for_one_prompt_is_refused(needs, share, part):
    with pytest.raises(ConfigError):
        plan(int(least_bytes(needs) * part / share), needs, share)


@settings(deadline=None)
@given(any_needs, any_spare, any_spare, any_share)
def test_more_memory_never_gives_less(needs, spare, more, share):
    free = enough(needs, share, spare)
    small, large = (plan(num, needs, share) for num in (free, free + more))
    assert small.max_batch_tokens <= large.max_batch_tokens
    assert small.num_adapters <= large.num_adapters


@settings(deadline=None)
@given(any_needs, any_spare, any_share)
def test_no_room_is_left_over_while_something_wants_it(needs, spare, share):
    free = enough(needs, share, spare)
    found = plan(free, needs, share)
    left = int(free * share) + needs.weights_bytes - found.total_bytes
    wants_adapters = found.num_adapters < needs.bank_size
    if wants_adapters or found.max_batch_tokens < needs.most_tokens:
        per_adapter = needs.adapter_bytes * (1 + PACK_SHARE)
        assert left < needs.token_bytes + per_adapter * wants_adapters


def test_plenty_gives_everything_that_is_wanted():
    found = plan(100 * GIB)
    assert (found.max_batch_tokens, found.num_adapters) == (MOST, 64)
    assert found.warnings == ()
    assert found.total_bytes == (2 + 1 + 8) * GIB + round(64 * 16 * MIB * (1 + PACK_SHARE))


def test_a_batch_never_exceeds_the_upper_cap():
    long = dataclasses.replace(NEEDS, context_tokens=NO_LIMIT, token_bytes=1)
    assert plan(100 * GIB, long).max_batch_tokens == MAX_TOKENS


def test_where_both_want_more_adapters_and_tokens_share_evenly():
    found = plan(5 * GIB)
    assert found.max_batch_tokens == 2 * GIB // NEEDS.token_bytes
    assert found.num_adapters == int(2 * GIB / (16 * MIB * (1 + PACK_SHARE)))
    [warning] = found.warnings
    assert f"RAMOLE_BANK_SIZE=64, but only {found.num_adapters} adapters" in warning


def test_what_tokens_do_not_want_goes_to_the_adapters():
    short = dataclasses.replace(NEEDS, context_tokens=1024)  # 1 GiB
    found = plan(5 * GIB, short)
    assert found.max_batch_tokens == 32 * 1024
    assert found.num_adapters == min(64, int(3 * GIB / (16 * MIB * (1 + PACK_SHARE))))


def test_the_setting_is_a_limit_and_a_larger_one_than_fits_is_said():
    limited = dataclasses.replace(NEEDS, max_batch_tokens=1000)
    assert plan(100 * GIB, limited).max_batch_tokens == 1000
    wished = dataclasses.replace(NEEDS, max_batch_tokens=200_000, bank_size=1)
    found = plan(3 * GIB, wished)
    assert found.max_batch_tokens < 200_000
    [warning] = found.warnings
    assert f"=200000, but only {found.max_batch_tokens} tokens fit" in warning
    assert warning in str(found)
    boundless = dataclasses.replace(NEEDS, max_batch_tokens=1 << 30)
    assert plan(100 * GIB, boundless).warnings == ()


def test_one_prompt_comes_before_the_adapters():
    found = plan(least_bytes(NEEDS))
    assert (found.max_batch_tokens, found.num_adapters) == (LEAST_TOKENS, 0)
    with pytest.raises(ConfigError) as caught:
        plan(least_bytes(NEEDS) - 1)
    said = str(caught.value)
    assert "\n" not in said
    assert all(
        word in said
        for word in ("cpu", "1.0 GiB of memory are free", "100% of them", "256 tokens", "RAMOLE_")
    )


def test_a_context_shorter_than_the_least_prompt_is_enough():
    tiny = dataclasses.replace(NEEDS, context_tokens=4, batch_size=2)
    assert plan(least_bytes(tiny), tiny).max_batch_tokens == 8


def test_the_plan_is_one_line_that_adds_up():
    line = str(plan(100 * GIB))
    assert "\n" not in line
    assert line == (
        "weights 2.0 GiB + 262144 tokens in 32 slots 8.0 GiB + 64 adapters of rank 16 1.0 GiB"
        f" + their packs {PACK_SHARE:.1f} GiB + activations 1.0 GiB"
        f" = {12 + PACK_SHARE:.1f} GiB of 102.0 GiB"
    )


def loaded(kind="llama"):
    model = tiny_model(kind)
    return describe_base(model, byte_tokenizer(), "tiny")


def test_a_loaded_model_is_measured(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * GIB)
    base = loaded()
    weights = sum(t.nbytes for t in [*base.model.parameters(), *base.model.buffers()])
    chosen = Settings(batch_size=4, bank_size=5)
    found = memory_plan(base, chosen, token_bytes=640, forward_tokens=2048)
    needs = found.needs
    assert (needs.weights_bytes, needs.token_bytes) == (weights, 640)
    assert (needs.batch_size, needs.bank_size, needs.context_tokens) == (4, 5, 256)
    assert found.max_batch_tokens == 4 * 256
    numbers = sum(16 * (d_out + d_in) for d_out, d_in in base.targets.values())
    assert needs.adapter_bytes == 4 * numbers
    attach(base.model)
    assert memory_plan(base, chosen, 640, 2048) == found


def test_activations_grow_with_rows_width_and_vocabulary(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * GIB)
    base = loaded()

    def activations(of=base, rows=2048, batch_size=4):
        return memory_plan(of, Settings(batch_size=batch_size), 1, rows).needs.activation_bytes

    widest = max(map(max, base.targets.values()))
    assert activations(rows=2049) - activations() == memory.ACTIVATION_WIDTHS * 4 * widest
    assert activations(batch_size=5) > activations()
    all_logits = dataclasses.replace(base, forward_names=frozenset())
    assert activations(all_logits) - activations() == 4 * (2048 + 4) * base.num_embeddings
    unknown = dataclasses.replace(base, num_embeddings=NO_LIMIT)
    assert activations(unknown) < activations()
    half = dataclasses.replace(base, dtype=torch.bfloat16)
    assert activations(half) < activations()


def test_a_gpu_is_filled_further_than_a_machine_that_others_share(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 200 * MIB)
    base = loaded()
    on_cuda = dataclasses.replace(base, device=torch.device("cuda:1"))
    chosen = Settings(batch_size=4096, bank_size=1)
    found = [memory_plan(b, chosen, 4096, 1).max_batch_tokens for b in (base, on_cuda)]
    assert found[0] < found[1] <= 200 * MIB * CUDA_SHARE / 4096
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    with pytest.raises(ConfigError, match="cuda:1"):
        memory_plan(on_cuda, chosen, 4096, 1)


def test_the_bank_keeps_to_the_plan():
    engine = tiny_engine()
    assert engine.bank._max_bytes == engine.plan.max_bank_bytes > engine.plan.bank_bytes
    assert engine.bank._max_pack_bytes == engine.plan.max_packs_bytes > engine.plan.packs_bytes
