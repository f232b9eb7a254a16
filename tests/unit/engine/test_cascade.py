"""Gate `cascade` against its definition: every decode by itself, and the formula written out."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from ramole_core.engine.choice import CascadeRule
from ramole_core.errors import PromptError

from ..mole.tiny import tiny_model
from .tiny import FakeClock, answers, ask, byte_tokenizer, drain, spy_entering, tiny_engine

LETTERS = "abcdefghijklmnop qrstuvwxyz"
ALWAYS, NEVER = CascadeRule(math.inf, 3.0), CascadeRule(-math.inf, 3.0)
HALF = CascadeRule(-2.2, 3.0)  # of the answers below, about one in two is that sure


def ruled(rule, **settings):
    """An engine that gives every request `rule`."""
    engine = tiny_engine(**settings)
    submit = engine.submit
    engine.submit = lambda request: submit(replace(request, rule=rule))
    return engine


def cascades(num, seed):
    """Requests of every number of experts, length and decoding, most of gate `cascade`."""
    rng = random.Random(seed)
    return [
        ask(
            "".join(rng.choices(LETTERS, k=rng.randint(1, 30))),
            *rng.sample(range(8), rng.randint(0, 4)),
            gate=rng.choice(["cascade", "cascade", "cascade", "mixture"]),
            router=rng.choice([None, "r1"]),
            tau=rng.choice([0.05, 0.02]),
            max_new_tokens=rng.randint(1, 8),
            temperature=rng.choice([0.0, 0.0, 1.2]),
            seed=i,
            stop=rng.choice([(), ("�",)]),
        )
        for i in range(num)
    ]


def one(request):
    """The answer of an engine that has nothing else to do."""
    [answer] = answers(tiny_engine(), [replace(request, wants_confidence=True)])
    return answer


def alone(request):
    """What each of the experts answers by itself."""
    experts = [replace(expert, weight=1.0) for expert in request.experts]
    return [one(replace(request, experts=(e,), gate="weights", router=None)) for e in experts]


def slow(request, rule):
    """What the module's docstring says, step by step."""
    if request.gate != "cascade" or len(request.experts) < 2:
        return one(request)
    first = one(replace(request, gate="mole"))
    if first.confidence >= rule.threshold:
        return first
    passes = alone(request)
    shares = [math.exp(expert.similarity / request.tau) for expert in request.experts]
    weights = [
        (share / sum(shares)) ** rule.prior_weight
        * math.exp(rule.confidence_weight * answer.confidence)
        for share, answer in zip(shares, passes, strict=True)
    ]
    pools = Counter()
    for answer, weight in zip(passes, weights, strict=True):
        pools[answer.text] += weight
    text = max(pools, key=pools.__getitem__)
    best = max(range(len(passes)), key=lambda i: (passes[i].text == text, weights[i]))
    return replace(
        passes[best],
        weights=tuple(float(i == best) for i in range(len(passes))),
        extra_passes=len(passes),
        extra_tokens=first.completion_tokens
        + sum(answer.completion_tokens for answer in passes)
        - passes[best].completion_tokens,
    )


def bare(answer):
    """Everything that is exact."""
    return replace(answer, confidence=None, weights=())


def assert_same(found, expected):
    assert list(map(bare, found)) == list(map(bare, expected))
    for a, b in zip(found, expected, strict=True):
        assert a.weights == pytest.approx(b.weights, abs=1e-5)
        if a.confidence is not None:
            assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


@pytest.mark.parametrize("rule", [HALF, replace(ALWAYS, confidence_weight=0.7, prior_weight=0.3)])
def test_the_answer_is_that_of_the_definition(rule):
    requests = cascades(40, seed=3)
    expected = [slow(request, rule) for request in requests]
    found = answers(ruled(rule, batch_size=16), requests)
    assert_same(found, expected)
    second = [(r, a) for r, a in zip(requests, found, strict=True) if a.extra_passes]
    assert any(1 in a.weights[1:] for _, a in second), "the most similar does not always win"
    assert any(len({p.text for p in alone(r)}) < a.extra_passes for r, a in second), "pools"
    if rule is HALF:
        wanted = [r for r in requests if r.cascades]
        assert 4 < len(second) < len(wanted) - 4


def test_an_answer_does_not_depend_on_its_neighbours_or_their_order():
    requests = cascades(30, seed=4)
    together = answers(ruled(HALF, batch_size=24), requests)
    turned = answers(ruled(HALF, batch_size=5, bank_size=4), requests[::-1])[::-1]
    one_by_one = answers(ruled(HALF, batch_size=1, bank_size=4), requests)
    assert_same(together, one_by_one)
    assert_same(together, turned)


def test_a_threshold_that_all_reach_is_gate_mole():
    requests = [replace(request, gate="cascade") for request in cascades(20, seed=5)]
    found = answers(ruled(NEVER), requests)
    mole = [replace(r, gate="mole", wants_confidence=len(r.experts) > 1) for r in requests]
    assert found == answers(tiny_engine(), mole)


def test_a_confidence_at_the_threshold_is_enough():
    request = ask("abc", 0, 1, 2, gate="cascade")
    confidence = one(replace(request, gate="mole")).confidence
    [at] = answers(ruled(CascadeRule(confidence, 3.0)), [request])
    [above] = answers(ruled(CascadeRule(math.nextafter(confidence, 0), 3.0)), [request])
    assert (at.extra_passes, above.extra_passes) == (0, 3)


def test_under_a_threshold_that_none_reaches_every_prompt_of_several_experts_has_a_second_pass():
    requests = [replace(request, gate="cascade") for request in cascades(20, seed=6)]
    for request, answer in zip(requests, answers(ruled(ALWAYS), requests), strict=True):
        k = len(request.experts)
        assert answer.extra_passes == (k if k > 1 else 0)
        assert k < 2 or sorted(answer.weights) == [0] * (k - 1) + [1]


def test_one_expert_or_none_has_no_second_pass():
    requests = [ask("abc", *places, gate="cascade") for places in [(), (0,), (3,)]]
    mole = [replace(request, gate="mole") for request in requests]
    assert answers(ruled(ALWAYS), requests) == answers(tiny_engine(), mole)


def test_explicit_weights_are_no_cascade():
    request = ask("abc", 0, 1, gate="weights", w0=0.3, w1=0.9)
    assert answers(ruled(ALWAYS), [request]) == answers(tiny_engine(), [request])


def test_a_mixture_that_votes_may_win():
    request = ask("abc", 0, 1, 2, gate="cascade")
    by_prior = CascadeRule(math.inf, confidence_weight=0.0, pooled=False, mixture_votes=True)
    [answer] = answers(ruled(by_prior), [request])
    passes = alone(request)
    assert answer == replace(
        one(replace(request, gate="mole")),
        confidence=answer.confidence,
        extra_passes=3,
        extra_tokens=sum(p.completion_tokens for p in passes),
    )
    [answer] = answers(ruled(replace(by_prior, prior_weight=-1.0)), [request])
    assert answer.text == passes[2].text
    assert answer.weights == (0, 0, 1)


def test_the_answer_chosen_is_the_one_whose_usage_is_reported():
    engine, requests = ruled(ALWAYS), cascades(16, seed=7)
    found = answers(engine, requests)
    firsts = [one(replace(r, gate="mole" if r.gate == "cascade" else r.gate)) for r in requests]
    assert engine.num_prompts == len(requests)
    assert engine.num_generated_tokens == sum(
        answer.completion_tokens + answer.extra_tokens for answer in found
    )
    for request, first, answer in zip(requests, firsts, found, strict=True):
        if answer.extra_passes:
            used = [p.completion_tokens for p in alone(request)]
            assert answer.completion_tokens == used[answer.weights.index(1)]
            everything = first.completion_tokens + sum(used)
            assert answer.extra_tokens == everything - answer.completion_tokens


def test_a_second_pass_is_not_put_behind_those_that_came_later():
    clock = FakeClock()
    engine = ruled(ALWAYS, batch_size=1, clock=clock)
    engine.submit(ask("first", 0, 1, 2, gate="cascade"))
    engine.step()
    for n in range(40):
        clock.now += 1
        engine.submit(ask(f"{n:05d}"))
    while engine.num_prompts == 0:
        engine.step()
    line = [(s.request.prompt, s.request.gate) for s in engine._scheduler.window()]
    assert line[:4] == [("first", "weights")] * 3 + [("00000", "mole")]
    assert len(line) == 43


def test_a_second_pass_does_not_wait_for_company():
    clock = FakeClock()
    engine = ruled(ALWAYS, batch_interval_seconds=5.0, clock=clock)
    future = engine.submit(ask("abc", 0, 1, gate="cascade"))
    assert not engine.step()
    clock.now += 5
    drain(engine)
    assert future.result(0).extra_passes == 2


def test_the_second_passes_of_several_prompts_share_their_batches():
    engine = ruled(ALWAYS, batch_size=8)
    entered = spy_entering(engine)
    answers(engine, [ask(text, 0, 1, gate="cascade", max_new_tokens=3) for text in "abcd"])
    assert [len(newcomers) for newcomers in entered] == [4, 8]


def test_a_prompt_is_tokenised_once():
    engine, seen = ruled(ALWAYS), []
    encode = engine.base.codec.encode_prompt
    engine.base.codec.encode_prompt = lambda text: seen.append(text) or encode(text)
    answers(engine, [ask("abc", 0, 1, 2, gate="cascade")])
    assert seen == ["abc"]


def test_a_prompt_that_cannot_be_asked_fails_as_under_any_gate():
    few, long = answers(
        ruled(ALWAYS, bank_size=2),
        [ask("a", 0, 1, 2, gate="cascade"), ask("a" * 256, 0, 1, gate="cascade")],
    )
    assert (few.code, long.code) == ("too_many_experts", "too_long")
    with pytest.raises(PromptError) as caught:
        ask("a", 0, gate="cascades")
    assert caught.value.code == "bad_gate"
    assert "cascade" in str(caught.value)


def test_messages_cascade_too():
    tokenizer = byte_tokenizer()
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    plain = ask("hi", 0, 1, gate="cascade")
    chat = replace(plain, prompt=None, messages=(("user", "hi"),))
    engine = ruled(ALWAYS, model=tiny_model(), tokenizer=tokenizer)
    first, second = answers(engine, [plain, chat])
    assert first == second
