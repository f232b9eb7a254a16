"""Attention over slots against the definition, one prompt and one token at a time."""

from types import SimpleNamespace

import pytest
import torch

from ramole_core.engine.attention import (
    AttentionError,
    AttentionStep,
    Continued,
    Decoding,
    Fresh,
    attend,
)
from ramole_core.engine.slots import SlotCache

H, H_KV, D = 4, 2, 8
LAYER = SimpleNamespace(layer_idx=0)
STYLES = {
    "plain": {},
    "window": {"sliding_window": 3},
    "softcap": {"softcap": 2.0},
    "sinks": {"s_aux": torch.tensor([0.3, -1.0, 2.0, 0.0])},
    "all": {"sliding_window": 4, "softcap": 5.0, "s_aux": torch.tensor([0.3, -1.0, 2.0, 0.0])},
}


def definition(q, keys, values, position, sliding_window=None, softcap=None, s_aux=None):
    """softmax(cap(q k / √D)) v over the visible tokens; q (H, D), keys and values (W, H_kv, D)."""
    out = torch.empty(H, D)
    for head in range(H):
        first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
        k = keys[first : position + 1, head // (H // H_KV)]
        scores = k @ q[head] / D**0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        sink = [] if s_aux is None else [s_aux[head : head + 1]]
        weights = torch.softmax(torch.cat([scores, *sink]), 0)[: len(scores)]
        out[head] = weights @ values[first : position + 1, head // (H // H_KV)]
    return out


class World:
    """Three prompts of 9, 6 and 5 tokens in slots 2, 0 and 3, and their q, k and v."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.slots = [2, 0, 3]
        self.q, self.k, self.v = (
            [torch.randn(n, heads, D, generator=generator) for n in (9, 6, 5)]
            for heads in (H, H_KV, H_KV)
        )
        self.cache = SlotCache()
        self.cache.reshape(4, 16, [])

    def step(self, parts, **kinds):
        """parts: (prompt, first token, end) in the order of rows."""
        positions = [p for _, begin, end in parts for p in range(begin, end)]
        slots = [self.slots[i] for i, begin, end in parts for _ in range(begin, end)]
        step = AttentionStep(self.cache, torch.tensor(slots), torch.tensor(positions), **kinds)
        q, k, v = (
            torch.cat([x[i][begin:end] for i, begin, end in parts]).transpose(0, 1)[None]
            for x in (self.q, self.k, self.v)
        )
        return step, q, k, v

    def run(self, parts, style, **kinds):
        step, q, k, v = self.step(parts, **kinds)
        out, _ = attend(LAYER, q, k, v, None, slots_step=step, **style)
        return out[0]  # (N, H, D)

    def wanted(self, parts, style):
        return torch.stack(
            [
                definition(self.q[i][p], self.k[i], self.v[i], p, **style)
                for i, begin, end in parts
                for p in range(begin, end)
            ]
        )


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_step_of_every_kind_of_prompt_equals_the_definition(style):
    """First a chunk of prompt 0 and all of prompt 1 but its end, padded to one bucket; then the
    rest of prompt 0, a token of prompt 1 and a fresh prompt 2, in one forward."""
    world = World()
    first = [(0, 0, 4), (1, 0, 5)]
    bucket = Fresh(
        torch.tensor([0, 1, 2, 3, 0, 4, 5, 6, 7, 8]),
        (2, 5),
        torch.tensor([0, 1, 2, 3, *range(5, 10)]),
    )
    out = world.run(first, style, fresh=(bucket,))
    assert torch.allclose(out, world.wanted(first, style), atol=1e-5)
    second = [(1, 5, 6), (2, 0, 5), (0, 4, 9)]
    out = world.run(
        second,
        style,
        decoding=Decoding(
            slice(0, 1), torch.tensor([0]), torch.tensor([0]), torch.tensor([6]), 6, 6
        ),
        fresh=(Fresh(slice(1, 6), (1, 5), None),),
        continued=(Continued(6, 11, 2, 4),),
    )
    assert torch.allclose(out, world.wanted(second, style), atol=1e-5)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_prompts_of_all_lengths_decode_in_one_call(style):
    world = World()
    begin = [(0, 0, 7), (1, 0, 4), (2, 0, 1)]
    world.run(
        begin,
        style,
        continued=(Continued(0, 7, 2, 0), Continued(7, 11, 0, 0), Continued(11, 12, 3, 0)),
    )
    decoding = Decoding(
        rows=slice(0, 3),
        slots=torch.tensor([2, 0, 3]),
        by_slot=torch.tensor([1, 0, 0, 2]),  # nobody sits in slot 1
        lengths=torch.tensor([5, 1, 8, 2]),
        width=8,
        shortest=2,
    )
    for token in range(2):
        parts = [(0, 7 + token, 8 + token), (1, 4 + token, 5 + token), (2, 1 + token, 2 + token)]
        out = world.run(parts, style, decoding=decoding)
        assert torch.allclose(out, world.wanted(parts, style), atol=1e-5)
        decoding.advance()


@pytest.mark.parametrize(
    "foreign", [{"attention_mask": torch.zeros(1)}, {"position_bias": torch.zeros(1)}]
)
def test_what_a_model_adds_by_itself_is_refused(foreign):
    world = World()
    step, q, k, v = world.step([(2, 0, 5)], fresh=(Fresh(slice(0, 5), (1, 5), None),))
    arguments = {"attention_mask": None, "slots_step": step} | foreign
    with pytest.raises(AttentionError):
        attend(LAYER, q, k, v, **arguments)


def test_a_forward_without_slots_is_refused():
    q = torch.zeros(1, H, 1, D)
    with pytest.raises(AttentionError):
        attend(LAYER, q, q, q, None)
