"""Targets of a training as token ids, and who waits for whom."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ramole_core.engine.tokens import TextCodec
from ramole_core.errors import PromptError

from .tiny import byte_tokenizer


def test_a_target_has_no_token_before_it_and_the_end_behind_it():
    codec = TextCodec(byte_tokenizer())
    assert codec.encode_target("ab") == [97, 98, byte_tokenizer().eos_token_id]


def test_a_target_that_is_no_text_is_refused():
    with pytest.raises(PromptError, match="target"):
        TextCodec(byte_tokenizer()).encode_target("\ud800")


def test_who_decodes_does_not_wait_for_who_encodes():
    """A shard with long prompts must not stop the engine's thread."""
    entered, let_go = threading.Event(), threading.Event()

    class Slow(type(byte_tokenizer())):
        def __call__(self, *args, **options):
            entered.set()
            assert let_go.wait(30)
            return super().__call__(*args, **options)

    codec = TextCodec(Slow(tokenizer_object=byte_tokenizer().backend_tokenizer))
    with ThreadPoolExecutor(2) as pool:
        ids = pool.submit(codec.encode_prompt, "abc")
        assert entered.wait(30)
        text = pool.submit(codec.decode, [97, 98])
        try:
            assert text.result(5) == "ab"
        finally:
            let_go.set()
        assert ids.result(30) == [97, 98, 99]
