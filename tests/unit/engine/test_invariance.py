"""Logits of five architectures against Hugging Face's and PEFT's, however prompts come together.

Every prompt's logits are those of one forward of its own text through a model of its own: whatever
the batch size, the order and moment of arrival, the chunks that prompts are cut into and the
segments that a forward has. Logits, not only tokens: those of random models rarely change.
"""

from dataclasses import replace
from functools import cache
from itertools import zip_longest

import pytest
import torch

from ramole_core.mole import partition
from ramole_core.mole.attach import target_shapes
from ramole_core.mole.router import random_router

from ..mole.reference import slow_model
from ..mole.tiny import CONFIGS, WINDOW, peft_adapter, tiny_model
from .tiny import REFS, ask, drain, generate, spy_entering, spy_tokens, tiny_engine

LETTERS = "abcdefghijklmnop qrstuvwxyz"
NUM_ADAPTERS = 3
PLAIN = [ask("base only", max_new_tokens=9), ask(LETTERS[5:] * 2, max_new_tokens=3)]
ALONE = [  # one adapter each: PEFT can answer them
    ask("z", 0, max_new_tokens=16),
    ask(LETTERS * 2, 1, max_new_tokens=7, gate="selection"),
    ask("The quick brown fox", 2, max_new_tokens=12, gate="weights", w0=1.0),
    ask(LETTERS[::-1], 0, max_new_tokens=10, gate="fusion"),
]
MIXED = [
    ask("many hands", 0, 1, max_new_tokens=8, gate="mixture"),
    ask("weights of its own", 2, 0, max_new_tokens=5, gate="weights", w0=1.5, w1=-0.5),
    ask(LETTERS[3:23], 1, 2, max_new_tokens=14, gate="fusion"),
    ask("routed", 0, 1, 2, max_new_tokens=11, gate="mole", router="r1", tau=0.5),
    ask("routed otherwise " * 2, 1, 2, max_new_tokens=6, gate="mole-plain", router="r2"),
]
REQUESTS = [r for row in zip_longest(MIXED, ALONE, PLAIN) for r in row if r is not None]


@cache
def adapters(kind):
    """As PEFT has them and as the bank takes them."""
    model = tiny_model(kind)
    return [peft_adapter(model, seed, r=2 + seed, lora_alpha=16) for seed in range(NUM_ADAPTERS)]


class QuietRouters:
    """Routers whose scores are no larger than a softmax that is written out can take."""

    def __init__(self, targets):
        self.targets = targets

    def load_router(self, version):
        router = random_router(self.targets, 3, torch.Generator().manual_seed(int(version[1:])))
        return replace(router, pairs={t: (a / 4, b / 4) for t, (a, b) in router.pairs.items()})


@torch.inference_mode()
def logits_of(model, request, tokens):
    """(T, V): of every token of the answer, from one forward over all of the text."""
    ids = [*request.prompt.encode(), *tokens[:-1]]
    return model(torch.tensor([ids])).logits[0, len(request.prompt) - 1 :]


@cache
def truth(kind):
    """The tokens and logits (T, V) of every request; how many tokens differ from the base's."""
    base, found, changed = tiny_model(kind), [], []
    weights = {ref: pair[1] for ref, pair in zip(REFS, adapters(kind), strict=False)}
    for request in REQUESTS:
        model = base
        if request in ALONE:
            model = adapters(kind)[REFS.index(request.experts[0].ref)][0]
        elif request in MIXED:
            mix = request.mix()
            router = QuietRouters(target_shapes(base)).load_router(request.router or "r0")
            model = slow_model(base, mix, [weights[ref] for ref in mix.experts], router)
        tokens = generate(model, request.prompt, request.max_new_tokens)
        logits = logits_of(model, request, tokens)
        found.append((tokens, logits))
        if request not in PLAIN:
            plain = logits_of(base, request, tokens)
            changed += (plain.argmax(-1) != logits.argmax(-1)).tolist()
    return found, sum(changed) / len(changed)


class Spy:
    """An engine over `kind`, what its forwards were of, and by prompt the logits (V,) of each of
    its tokens."""

    def __init__(self, kind, **settings):
        model = tiny_model(kind)
        weights = {ref: pair[1] for ref, pair in zip(REFS, adapters(kind), strict=False)}
        routers = QuietRouters(target_shapes(model))
        self.engine = tiny_engine(model, weights, routers=routers, **settings)
        self.kind, self.forwards, self.logits = kind, [], {}
        self.sequences, self.entered = spy_tokens(self.engine), spy_entering(self.engine)
        self.forward, self.engine.runner._forward = self.engine.runner._forward, self

    def __call__(self, rows):
        logits = self.forward(rows)  # (M, V)
        self.forwards.append((rows.chunks, rows.plan.segments))
        for chunk, row in zip(rows.giving, logits, strict=True):
            self.logits.setdefault(chunk.sequence.request.prompt, []).append(row)
        return logits

    def check(self, order=REQUESTS, num_steps=0):
        """`num_steps` lie between the arrivals of two prompts of `order`."""
        for request in order:
            self.engine.submit(request)
            for _ in range(num_steps):
                self.engine.step()
        drain(self.engine)
        tokens = {s.request.prompt: s.output_ids for s in self.sequences}
        for request, (wanted, right) in zip(REQUESTS, truth(self.kind)[0], strict=True):
            assert tokens[request.prompt] == wanted
            found = torch.stack(self.logits[request.prompt])  # (T, V)
            assert (found - right).abs().max() < 1e-4
        return self


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_adapters_change_nine_of_ten_tokens_and_texts_reach_beyond_the_window(kind):
    """Without that the tests below would prove little."""
    found, changed = truth(kind)
    assert changed >= 0.9
    assert sum(len(tokens) for tokens, _ in found) > 80
    assert sum(len(r.prompt) > 2 * WINDOW for r in REQUESTS) >= 4


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_by_one_all_at_once_and_in_small_batches(kind):
    assert max(len(chunks) for chunks, _ in Spy(kind, batch_size=1).check().forwards) == 1
    assert len(Spy(kind, batch_size=16).check().entered) == 1
    refilled = Spy(kind, batch_size=3, bank_size=3).check()
    assert max(len(chunks) for chunks, _ in refilled.forwards) == 3
    assert len(refilled.entered) > 5


@pytest.mark.parametrize("kind", CONFIGS)
def test_in_any_order_and_at_any_moment(kind):
    """Prompts come in while others decode: the more steps lie between two of them, the later."""
    Spy(kind, batch_size=4).check(REQUESTS[::-1])
    Spy(kind, batch_size=8, loads_at_once=False).check(REQUESTS[5:] + REQUESTS[:5])
    for num_steps in (1, 3):
        spy = Spy(kind, batch_size=4).check(num_steps=num_steps)
        assert any({c.start > 0 for c in chunks} == {True, False} for chunks, _ in spy.forwards)


@pytest.mark.parametrize("num_tokens", [1, 7, 30])
@pytest.mark.parametrize("kind", CONFIGS)
def test_however_prompts_are_cut(kind, num_tokens):
    spy = Spy(kind, batch_size=5)
    spy.engine.runner.prefill_tokens = num_tokens
    forwards = spy.check().forwards
    chunks = [c for chunks, _ in forwards for c in chunks if c.start < len(c.sequence.prompt_ids)]
    assert sum(len(c.ids) for c in chunks) == sum(len(r.prompt) for r in REQUESTS)
    assert max(len(c.ids) for c in chunks) == num_tokens
    assert any(
        any(c.decodes and c.gives_token for c in chunks) and not all(c.gives_token for c in chunks)
        for chunks, _ in forwards
    ), "parts of a prompt go beside others that decode"


@pytest.mark.parametrize("kind", CONFIGS)
def test_however_a_forward_is_put_into_segments(kind, monkeypatch):
    """When calls cost all there is, one segment for each router; when they are a gain, one for
    each set of experts."""
    found = []
    for calls in (10**15, -(10**15)):
        monkeypatch.setattr(partition, "CALLS", calls)
        spy = Spy(kind, batch_size=16).check()
        found.append(len(spy.forwards[0][1]))
    sets = {frozenset(s.adapters) for s in spy.sequences if s.adapters}
    assert found == [2, len(sets)]
    assert len(sets) == 7
