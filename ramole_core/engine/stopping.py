"""When an answer ends, and its text.

An answer ends with an end-of-text token, or as soon as its text contains a stop string, which may
span tokens and may have text behind it in its last token; both are cut off.
"""

from collections.abc import Sequence
from typing import Final

from ramole_core.engine.tokens import TextCodec

SLACK_TOKENS: Final = 8  # begins the looked-at tail before a stop string's own first token


class StopRule:
    """The ends of one request: `eos_ids` of the model and the request's `stop` strings."""

    def __init__(self, codec: TextCodec, eos_ids: frozenset[int], stop: tuple[str, ...]) -> None:
        self._codec = codec
        self._eos_ids = eos_ids
        self._stop = stop
        # Every token that is not special gives at least one byte of text.
        longest = max((len(s.encode("utf-8", "surrogatepass")) for s in stop), default=0)
        self._tail_tokens = longest + SLACK_TOKENS

    def ends(self, output_ids: Sequence[int]) -> bool:
        """True when the newest of `output_ids` ended the answer. Call it once per token."""
        if output_ids[-1] in self._eos_ids:
            return True
        if not self._stop or self._find(self._codec.decode(self._tail(output_ids))) < 0:
            return False
        return self._find(self._codec.decode(output_ids)) >= 0

    def text(self, output_ids: Sequence[int]) -> str:
        """The answer's text: without the end-of-text token, up to the first stop string."""
        ids = list(output_ids)
        if ids and ids[-1] in self._eos_ids:
            ids.pop()
        text = self._codec.decode(ids)
        place = self._find(text)
        return text if place < 0 else text[:place]

    def _find(self, text: str) -> int:
        """Place of the earliest stop string, or -1."""
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return min(places, default=-1)

    def _tail(self, output_ids: Sequence[int]) -> list[int]:
        tail: list[int] = []
        for token in reversed(output_ids):
            if len(tail) == self._tail_tokens:
                break
            if not self._codec.is_special(token):
                tail.append(token)
        return tail[::-1]
