"""Text to token ids and back. Safe to use from many threads; who decodes waits for no encoder.

A plain prompt gets the tokenizer's default special tokens, messages go through the model's chat
template. Prompts that leave no room in the context fail or lose their beginning.
"""

import copy
import threading
from collections.abc import Sequence
from typing import Any, Literal

from ramole_core.errors import PromptError


class TextCodec:
    """A tokenizer and a copy of it that decodes, each behind a lock: fast tokenizers raise "Already
    borrowed" across threads, and long prompts keep theirs for a while."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._decoder = copy.deepcopy(tokenizer)
        self._decoder_lock = threading.Lock()
        # Models have ids that their tokenizer does not know: those give no text either.
        self._with_text = {*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}
        self._bos = tokenizer.bos_token_id

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of a plain prompt. Raises PromptError `bad_prompt` for text that is not Unicode or
        that the tokenizer refuses."""
        with self._lock:
            try:
                return list(self.tokenizer(prompt, verbose=False)["input_ids"])
            except (UnicodeError, TypeError) as e:  # lone surrogates
                raise PromptError("bad_prompt", f"the prompt is not valid Unicode: {e}") from e
            except Exception as e:  # tokenizers raises bare ones: no id for an unknown word, …
                raise PromptError("bad_prompt", f"the tokenizer refuses the prompt: {e}") from e

    def encode_target(self, target: str) -> list[int]:
        """Ids of an answer that follows a prompt: no special token before it, the end-of-text token
        behind it where the tokenizer has one. Raises PromptError `bad_prompt`."""
        with self._lock:
            try:
                ids = list(
                    self.tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"]
                )
            except Exception as e:
                raise PromptError("bad_prompt", f"the tokenizer refuses the target: {e}") from e
        end = self.tokenizer.eos_token_id
        return ids if end is None else [*ids, end]

    def encode_messages(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation, ready for the assistant's turn. Raises PromptError
        `no_chat_template` without a template, `chat_template` when it refuses the messages."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise PromptError(
                "no_chat_template", "the base model has no chat template: send `prompt` instead"
            )
        turns = [{"role": role, "content": content} for role, content in messages]
        with self._lock:
            try:
                ids = self.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            except Exception as e:  # whatever the template's own code raises
                raise PromptError("chat_template", f"the chat template refuses: {e}") from e
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens. All ids at once: characters span tokens."""
        with self._decoder_lock:
            return str(
                self._decoder.decode(
                    list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )

    def is_special(self, token: int) -> bool:
        """True for a token that gives no text."""
        return token not in self._with_text

    def fit(
        self,
        ids: list[int],
        context_tokens: int,
        max_new_tokens: int,
        on_too_long: Literal["fail", "truncate"],
        limit: str = "a context",
    ) -> list[int]:
        """`ids`, which must leave room for one token; under `truncate` as many of their last ones
        as leave room for `max_new_tokens`, but for no more than half of the context.

        A truncated prompt keeps its beginning-of-text token. `limit` is what `context_tokens` is
        called. Raises PromptError `empty_prompt`, `too_long`.
        """
        if not ids:
            raise PromptError("empty_prompt", "the prompt has no tokens")
        if on_too_long == "fail":
            if len(ids) < context_tokens:
                return ids
            raise PromptError(
                "too_long",
                f"the prompt has {len(ids)} tokens, the limit is {context_tokens - 1} ({limit} of "
                f"{context_tokens} with room for one token); shorten it or set on_too_long "
                "to truncate",
            )
        room = max(1, context_tokens - max(1, min(max_new_tokens, context_tokens // 2)))
        if len(ids) <= room:
            return ids
        if ids[0] == self._bos and room > 1:
            return [ids[0], *ids[len(ids) - room + 1 :]]
        return ids[-room:]
