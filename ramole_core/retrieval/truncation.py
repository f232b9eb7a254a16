"""Cutting long texts in the middle: what a prompt asks for stands at its beginning or its end.

LoraRetriever's prompts are passages with an instruction before or behind them; an encoder that
keeps the first 256 tokens never sees the one behind.
"""

from typing import Any, Final

MAX_CHARACTERS_PER_TOKEN: Final = 64  # no more is looked at, however long the prompt
JOINT: Final = " "


class MiddleCut:
    """Texts of at most about `max_tokens` tokens, special tokens included.

    Both halves are cut between tokens; joined again they may come to a token more or less, so the
    encoder still has to drop what is over its limit.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._num_specials = len(tokenizer("")["input_ids"])
        self.max_tokens = max_tokens

    @classmethod
    def of(cls, model: Any, max_tokens: int) -> "MiddleCut | None":
        """For a sentence-transformers model; None when its tokenizer cannot say where a token
        stands in the text."""
        tokenizer = getattr(model, "tokenizer", None)
        return cls(tokenizer, max_tokens) if getattr(tokenizer, "is_fast", False) else None

    def __call__(self, text: str) -> str:
        """`text` itself when it is short enough, else its beginning and its end."""
        room = self.max_tokens - self._num_specials
        text = _within(text, room * MAX_CHARACTERS_PER_TOKEN)
        spans = self._spans(text)
        if len(spans) <= room:
            return text
        num_tail = room // 2
        head_end = spans[room - num_tail - 1][1]
        tail_start = spans[len(spans) - num_tail][0]
        return text[:head_end] + JOINT + text[tail_start:]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) of every token in `text`."""
        found = self._tokenizer(
            text,
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,  # it would warn of texts that the cut makes fit
        )
        return list(found["offset_mapping"])


def _within(text: str, limit: int) -> str:
    """At most `limit` characters: the beginning and the end."""
    if len(text) <= limit:
        return text
    num_tail = limit // 2
    return text[: limit - num_tail] + JOINT + text[len(text) - num_tail :]
