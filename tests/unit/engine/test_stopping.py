"""How answers end: end-of-text, stop strings, limits, characters that span tokens."""

import pytest

from ramole_core.engine.stopping import StopRule
from ramole_core.engine.tokens import TextCodec

from ..mole.tiny import tiny_model
from .tiny import answers, ask, byte_tokenizer, generate, tiny_engine

CODEC = TextCodec(byte_tokenizer())
EOS = 258


def run(text_or_ids, *stop, eos=frozenset({EOS})):
    """Feeds tokens until the rule ends it: (text, number of tokens) or None."""
    ids = list(text_or_ids.encode()) if isinstance(text_or_ids, str) else text_or_ids
    rule = StopRule(CODEC, eos, stop)
    for num in range(1, len(ids) + 1):
        if rule.ends(ids[:num]):
            return rule.text(ids[:num]), num
    return None


def test_a_stop_string_spans_tokens_and_is_not_returned():
    assert run("one two. three", ". t") == ("one two", 10)
    assert run("one two", "three") is None


def test_the_earliest_of_several_stop_strings_wins():
    assert run("abcdef", "def", "bcde") == ("a", 5)
    assert run("abcdef", "cd", "bcd") == ("a", 4)


def test_a_stop_string_far_into_a_long_answer_is_found():
    assert run("x" * 300 + "é, stop", "é, s") == ("x" * 300, 305)


def test_special_tokens_inside_a_stop_string_do_not_hide_it():
    assert run([*b"ab", 256, 257, *b"cd"], "abc") == ("", 5)


def test_ids_that_the_tokenizer_does_not_know_do_not_hide_a_stop_string():
    """Embeddings are padded: a model can generate ids without a token."""
    assert run([*b"ab", *[300] * 20, *b"cd"], "abc") == ("", 23)


def test_end_of_text_ends_and_gives_no_text():
    assert run([*b"ab", EOS, *b"cd"]) == ("ab", 3)
    assert run([65, 66, 10], eos=frozenset({10, 258})) == ("AB", 3)


@pytest.mark.parametrize("stop", ["é", "日本", "🙂!"])
def test_characters_that_span_tokens(stop):
    text = f"naïve {stop} tail"
    assert run(text, stop) == ("naïve ", len(f"naïve {stop}".encode()))
    rule = StopRule(CODEC, frozenset(), ())
    assert rule.text(list(text.encode())) == text


def test_half_a_character_at_the_end_is_a_replacement_character_only_there():
    rule = StopRule(CODEC, frozenset(), ())
    assert rule.text(list("日本".encode())[:-1]) == "日�"


def test_the_engine_ends_at_every_end_of_text_token():
    """The model's own greedy tokens, one of them declared an end."""
    model = tiny_model()
    tokens = generate(model, "abc", 12)
    place = next(i for i in range(2, 12) if tokens[i] not in tokens[:i])
    model.generation_config.eos_token_id = [EOS, tokens[place]]
    expected = generate(model, "abc", 12)
    [answer] = answers(tiny_engine(model), [ask("abc")])
    assert answer.finish_reason == "stop"
    assert answer.completion_tokens == len(expected) == place + 1
    assert answer.text == CODEC.decode(tokens[:place])


def test_the_engine_cuts_at_a_stop_string_and_neighbours_go_on():
    model = tiny_model()
    [free] = answers(tiny_engine(model), [ask("abd", max_new_tokens=20)])
    assert free.finish_reason == "length"
    assert free.completion_tokens == 20
    stop = free.text[3:5]
    cut, whole = answers(
        tiny_engine(model),
        [ask("abd", max_new_tokens=20, stop=(stop,)), ask("abd", max_new_tokens=20)],
    )
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < 20
    assert whole == free
