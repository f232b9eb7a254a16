"""Targets of a training as token ids."""

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
