"""Prompts that are empty, too long, or end at the limit of the context."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ramole_core.engine.request import GenerationRequest
from ramole_core.engine.tokens import TextCodec
from ramole_core.errors import PromptError

from ..mole.tiny import tiny_model
from .tiny import answers, ask, byte_tokenizer, generate, generated, tiny_engine

CODEC = TextCodec(byte_tokenizer())
CONTEXT = 256  # of the tiny models


def codes(results):
    return [getattr(result, "code", None) for result in results]


def test_a_prompt_needs_room_for_one_token():
    engine = tiny_engine()
    last, beyond, empty = answers(
        engine, [ask("a" * (CONTEXT - 1)), ask("a" * CONTEXT), ask("", max_new_tokens=1)]
    )
    assert (last.completion_tokens, last.finish_reason) == (1, "length")
    assert codes([beyond, empty]) == ["too_long", "empty_prompt"]
    assert "256 tokens" in str(beyond)
    assert "255" in str(beyond)


def test_generation_ends_at_the_limit_of_the_context():
    model = tiny_model()
    [answer] = answers(tiny_engine(model), [ask("ab" * 120, max_new_tokens=1000)])
    assert (answer.prompt_tokens, answer.completion_tokens) == (240, 16)
    assert answer.finish_reason == "length"
    assert answer.text == CODEC.decode(generate(model, "ab" * 120, 16))


def test_truncation_keeps_the_end_and_leaves_room():
    model = tiny_model()
    text = "".join(chr(97 + i % 26) for i in range(400))
    engine = tiny_engine(model)
    tokens = generated(engine, [ask(text, max_new_tokens=20, on_too_long="truncate")])
    assert tokens == [generate(model, text[-236:], 20)]
    tokens = generated(tiny_engine(model), [ask(text, max_new_tokens=999, on_too_long="truncate")])
    assert tokens == [generate(model, text[-128:], 128)]


@pytest.mark.parametrize("context", range(2, 9))
@pytest.mark.parametrize("max_new", [1, 2, 3, 100])
def test_a_truncated_prompt_always_fits(context, max_new):
    ids = CODEC.fit(list(range(20)), context, max_new, "truncate")
    assert 1 <= len(ids) < context
    assert ids == list(range(20))[-len(ids) :]
    assert len(ids) + max_new <= context or len(ids) <= (context + 1) // 2


def test_a_truncated_prompt_keeps_its_beginning_of_text():
    ids = [257, *range(20)]
    assert CODEC.fit(ids, 10, 4, "truncate") == [257, 15, 16, 17, 18, 19]


def test_the_batch_limit_bounds_a_single_prompt_too():
    engine = tiny_engine(max_batch_tokens=64)
    short, long = answers(engine, [ask("a" * 60, max_new_tokens=100), ask("a" * 64)])
    assert short.prompt_tokens + short.completion_tokens == 64
    assert long.code == "too_long"


def test_what_cannot_be_tokenised_fails_alone():
    chat = GenerationRequest(messages=(("user", "hi"),))
    results = answers(tiny_engine(), [chat, ask("\ud800"), ask("fine")])
    assert codes(results)[:2] == ["no_chat_template", "bad_prompt"]
    assert results[2].completion_tokens == 12


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "a", "messages": ()},
        {"prompt": "a", "max_new_tokens": 0},
        {"prompt": "a", "temperature": -1.0},
        {"prompt": "a", "temperature": float("nan")},
        {"prompt": "a", "top_p": 0.0},
        {"prompt": "a", "stop": ("",)},
        {"prompt": "a", "tau": 0.0},
        {"prompt": "a", "tau": float("inf")},
        {"prompt": "a", "tau": float("nan")},
    ],
)
def test_a_request_that_makes_no_sense_is_refused_when_it_is_made(options):
    with pytest.raises(PromptError) as caught:
        GenerationRequest(**options)
    assert caught.value.code == "bad_request"


def test_more_experts_than_the_bank_holds_fail_that_prompt():
    few, many = answers(tiny_engine(bank_size=2), [ask("a", 0, 1), ask("a", 0, 1, 2)])
    assert few.completion_tokens == 12
    assert many.code == "too_many_experts"


def test_memory_is_bounded_a_chunk_of_prompts_a_forward_and_logits_for_new_tokens_alone():
    """32 prompts of 200 tokens; those that are in decode beside those that come."""
    engine = tiny_engine(batch_size=32)
    engine.runner.prefill_tokens = 1024
    forward, forwards, projected = engine.runner._forward, [], []
    engine.runner._forward = lambda rows: forwards.append(rows.chunks) or forward(rows)
    engine.base.model.lm_head.register_forward_pre_hook(
        lambda _, args: projected.append(args[0].shape[:-1].numel())
    )
    results = answers(engine, [ask("a" * (200 - i % 3), max_new_tokens=9) for i in range(32)])
    decoding = [sum(c.start >= len(c.sequence.prompt_ids) for c in chunks) for chunks in forwards]
    prompts = [
        sum(len(c.ids) for c in chunks) - num
        for chunks, num in zip(forwards, decoding, strict=True)
    ]
    assert max(prompts) == 1024
    assert sum(prompts) == sum(r.prompt_tokens for r in results), "every token once, no padding"
    assert any(a and b for a, b in zip(prompts, decoding, strict=True))
    assert projected == [sum(c.gives_token for c in chunks) for chunks in forwards]
    assert sum(projected) == sum(r.completion_tokens for r in results)


def test_under_truncate_the_room_for_the_answer_has_no_cliff():
    """Prompts just under and just over the context get the same room."""
    requests = [
        ask("a" * n, max_new_tokens=100, on_too_long="truncate") for n in (100, 156, 157, 255, 300)
    ]
    found = answers(tiny_engine(), requests)
    assert [r.prompt_tokens for r in found] == [100, 156, 156, 156, 156]
    assert len(set(found[1:])) == 1


def test_the_limit_that_counts_is_named():
    own, batch = (
        str(answers(tiny_engine(**settings), [ask("a" * 300)])[0])
        for settings in ({}, {"max_batch_tokens": 64})
    )
    assert "the worker's batch (RAMOLE_MAX_BATCH_TOKENS, 0: by its memory) of 64" in batch
    assert "a context of 256" in own
    assert "RAMOLE" not in own


def test_a_prompt_that_the_tokenizer_refuses_fails_alone():
    """A vocabulary of words without an id for the others: tokenizers raises a bare Exception."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    bad, good = answers(tiny_engine(tokenizer=tokenizer), [ask("a zzz"), ask("a b")])
    assert bad.code == "bad_prompt"
    assert good.prompt_tokens == 2
