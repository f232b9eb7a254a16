"""What the engine answers: Hugging Face's tokens, PEFT's tokens, whatever the neighbours are."""

import copy
import random

import pytest
import torch

from ramole_core.engine.request import GenerationRequest
from ramole_core.mole.gates import Mix
from ramole_core.mole.router import random_router

from ..mole.reference import slow_model
from ..mole.tiny import CONFIGS, WINDOW, peft_adapter, tiny_model
from .tiny import (
    REFS,
    adapters_for,
    answers,
    ask,
    byte_tokenizer,
    generate,
    generated,
    spy_tokens,
    tiny_engine,
)

LETTERS = "abcdefghijklmnop qrstuvwxyz"
PROMPTS = [LETTERS[:9], "z", LETTERS * 2, "The quick", LETTERS[3:20]]


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_without_adapters_equals_generate_beyond_the_window(kind):
    """Prompt 2 has 52 tokens, the sliding windows of Mistral and Gemma 12."""
    assert len(PROMPTS[2]) > 2 * WINDOW
    model = tiny_model(kind)
    expected = [generate(model, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)
    requests = [ask(prompt, max_new_tokens=20) for prompt in PROMPTS]
    assert generated(tiny_engine(model), requests) == expected


@pytest.mark.parametrize("kind", ["mistral", "gemma", "llama"])
def test_a_prompt_in_chunks_equals_the_prompt_at_once(kind):
    model = tiny_model(kind)
    expected = [generate(model, prompt, 12) for prompt in PROMPTS]
    engine = tiny_engine(model)
    engine.runner.prefill_tokens = 1  # chunks of 16 columns
    assert generated(engine, [ask(prompt) for prompt in PROMPTS]) == expected


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("gate", ["mole", "fusion"])
def test_greedy_with_one_expert_equals_peft_generate(kind, gate):
    model = tiny_model(kind)
    peft, weights = peft_adapter(model, seed=3, rank_pattern={"dense": 2, "q_proj": 2})
    expected = [generate(peft, prompt, 12) for prompt in PROMPTS]
    assert expected != [generate(model, prompt, 12) for prompt in PROMPTS]
    engine = tiny_engine(model, {REFS[0]: weights})
    assert generated(engine, [ask(prompt, 0, gate=gate) for prompt in PROMPTS]) == expected


def varied_requests(num, seed):
    """Requests of every gate, length and number of experts; most end at different steps."""
    rng = random.Random(seed)
    gates = ["mole", "mole-plain", "selection", "mixture", "fusion", "weights"]
    requests = []
    for i in range(num):
        gate = gates[i % len(gates)]
        places = rng.sample(range(8), rng.randint(0 if gate != "mole-plain" else 1, 4))
        requests.append(
            ask(
                "".join(rng.choices(LETTERS, k=rng.randint(1, 60))),
                *places,
                gate=gate,
                router="r1" if gate == "mole-plain" or i % 4 == 0 else None,
                max_new_tokens=rng.randint(1, 14),
                temperature=rng.choice([0.0, 0.0, 1.2]),
                top_p=rng.choice([1.0, 0.8]),
                seed=i,
            )
        )
    return requests


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma", "gptneox"])
def test_an_answer_does_not_depend_on_its_neighbours(kind):
    model = tiny_model(kind)
    requests = varied_requests(24, seed=5)
    together = generated(tiny_engine(model, batch_size=24), requests)
    reversed_order = generated(tiny_engine(model, batch_size=5, bank_size=5), requests[::-1])
    alone = tiny_engine(model, batch_size=1, bank_size=4)
    assert together == generated(alone, requests)
    assert together == reversed_order[::-1]


def test_reported_weights_do_not_depend_on_the_neighbours():
    model = tiny_model()
    requests = varied_requests(12, seed=6)
    together = answers(tiny_engine(model, batch_size=12), requests)
    alone = answers(tiny_engine(model, batch_size=1), requests)
    for request, a, b in zip(requests, together, alone, strict=True):
        assert len(a.weights) == len(request.experts)
        assert a.weights == pytest.approx(b.weights, abs=1e-5)
        if request.experts and request.gate not in ("weights",):
            assert sum(a.weights) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("gate", ["mole", "mole-plain"])
def test_a_routed_answer_and_its_weights_follow_the_slow_reference(gate):
    """Token by token with the equations written out, the weights averaged over them."""
    model = tiny_model()
    adapters = adapters_for(model)
    engine = tiny_engine(model, adapters)
    request = ask("abcdef", 0, 1, 2, gate=gate, router="r1", max_new_tokens=6)
    [tokens] = generated(engine, [request])
    router = random_router(engine.base.targets, 3, torch.Generator().manual_seed(1))
    mix = Mix(gate, tuple(REFS[:3]), tuple(e.similarity for e in request.experts), (), "r1")
    ids, alphas = list(b"abcdef"), []
    for token in tokens:
        slow = slow_model(model, mix, [adapters[r] for r in REFS[:3]], router)
        with torch.inference_mode():
            assert slow(torch.tensor([ids])).logits[0, -1].argmax() == token
        alphas += [m.alphas[-1][-1] for m in slow.modules() if hasattr(m, "alphas")]
        ids.append(token)
    [answer] = answers(tiny_engine(model, adapters), [request])
    assert answer.weights == pytest.approx(torch.stack(alphas).mean(0).tolist(), abs=1e-4)


def test_static_gates_report_their_weights():
    def weights(gate, *places, **options):
        [answer] = answers(tiny_engine(), [ask("abc", *places, gate=gate, **options)])
        return answer.weights

    assert weights("selection", 0, 1, 2) == (1, 0, 0)
    assert weights("mixture", 0, 1) == (0.5, 0.5)
    assert weights("weights", 0, 1, w0=1.5, w1=-0.25) == (1.5, -0.25)
    assert weights("mole") == ()
    prior = torch.softmax(torch.tensor([0.60, 0.58, 0.56]) / 0.05, 0).tolist()
    assert weights("mole", 0, 1, 2) == pytest.approx(prior)
    prior = torch.softmax(torch.tensor([0.60, 0.58, 0.56]) / 0.2, 0).tolist()
    assert weights("mole", 0, 1, 2, tau=0.2) == pytest.approx(prior)


def test_messages_go_through_the_chat_template():
    tokenizer = copy.copy(byte_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    model = tiny_model()
    engine = tiny_engine(model, tokenizer=tokenizer)
    turns = (("system", "be"), ("user", "hi"))
    [tokens] = generated(engine, [GenerationRequest(messages=turns, max_new_tokens=8)])
    assert tokens == generate(model, "s:be u:hi a:", 8)


def spoiled(model, sliding, num_kept):
    """The answer when only the last `num_kept` keys of the sliding layers are what they were."""
    engine = tiny_engine(model)
    seen = spy_tokens(engine)
    future = engine.submit(ask(LETTERS * 2, max_new_tokens=8))
    [sequence] = seen
    while engine.step():
        with torch.inference_mode():
            for layer in sliding:
                for tensor in engine._slots.cache._layers[layer]:
                    tensor[sequence.slot, :, : sequence.num_cached - num_kept] = 7.0
    return future.exception() or sequence.output_ids


@pytest.mark.parametrize(("kind", "sliding"), [("mistral", [0, 1]), ("gemma", [0])])
def test_sliding_layers_look_at_no_more_than_their_window(kind, sliding):
    """Beside the newest token, whose key comes in the same step."""
    model = tiny_model(kind)
    expected = generate(model, LETTERS * 2, 8)
    assert spoiled(model, sliding, WINDOW - 1) == expected
    assert spoiled(model, sliding, WINDOW - 2) != expected


def test_finished_prompts_leave_at_once_and_others_take_their_slots_in_the_same_step():
    engine = tiny_engine(batch_size=4)
    requests = [ask(f"{n:03d}", n % 3, max_new_tokens=1 + 5 * n % 7) for n in range(20)]
    step, steps = engine.runner.step, []

    def record(running, cache):
        steps.append({s.request.prompt: s.slot for s in running})
        return step(running, cache)

    engine.runner.step = record
    results = answers(engine, requests)
    left = {r.prompt: a.completion_tokens for r, a in zip(requests, results, strict=True)}
    assert len({*left.values()}) > 3
    for before, slots in zip([{}, *steps], steps, strict=False):
        assert all(left[text] for text in slots), "who has its answer takes part no more"
        assert len(slots) == min(4, sum(num > 0 for num in left.values()))
        assert {*slots.values()} <= set(range(4))
        assert all(slots[text] == slot for text, slot in before.items() if left[text])
        left = {text: num - (text in slots) for text, num in left.items()}
    assert not any(left.values())
