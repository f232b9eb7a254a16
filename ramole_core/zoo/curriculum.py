"""What the base learns: the eight functions on made-up words, asked for by code or by a plain cue.

Guarantees: no development or test word is ever drawn, and no wording of an adapter is used: the
base learns the skills and a few cues of plain English, the adapters learn which wording asks for
which skill. Because cues lose words and stand among others, the base understands some wordings.
"""

import random
from functools import cache

from ramole_core.zoo.tasks import FUNCTIONS
from ramole_core.zoo.words import domain_names, domain_words, held_out_words

Example = tuple[str, str]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CONSONANTS = "bcdfghjklmnprstvwxz"
_VOWELS = "aeiou"
_CUES = {
    "reverse": ("write backwards", "read in reverse"),
    "upper": ("write in capital letters", "print in capitals"),
    "vowelless": ("write without vowels", "drop the vowels"),
    "twice": ("write twice", "say two times"),
    "spell": ("spell with dashes", "write letter by letter"),
    "count": ("count the letters", "how many letters"),
    "swap": ("swap the first and last letter", "swap the outer letters"),
    "tail": ("give the last letter", "name the final letter"),
}
_CUE_SHARE = 0.25
_WORD_DROPOUT = 0.15
_FILLER = """
    a about after all and are at before begin book by can card day do does first for friend from
    game give good has have here how i if in is it letter list long make my name new next note now
    number of on one or other our out over page paper please put read say see she show some tell
    that the then there they thing this time to today two use want was we what when which with word
    write you your
"""


def draw_word(rng: random.Random) -> str:
    """Draw 3 to 9 letters: syllables, random ones or a training word; never a held-out word."""
    while True:
        word = rng.choice((_syllables, _syllables, _random_letters, _training_word))(rng)
        if word not in held_out_words():
            return word


def short_example(rng: random.Random) -> Example:
    """Draw an example of the first stage: little more than a request for a function and a word."""
    return _example(rng, max_fillers=1, cue_share=_CUE_SHARE)


def long_example(rng: random.Random) -> Example:
    """Draw an example of the second stage: request and word lie among up to ten other words."""
    return _example(rng, max_fillers=10, cue_share=2 * _CUE_SHARE)


def mixed_example(rng: random.Random) -> Example:
    """Draw a short example in a quarter of the cases, else a long one."""
    return short_example(rng) if rng.random() < 0.25 else long_example(rng)


def _example(rng: random.Random, max_fillers: int, cue_share: float) -> Example:
    family = rng.choice(tuple(FUNCTIONS))
    word = draw_word(rng)
    parts = _cue(family, rng) if rng.random() < cue_share else [f"[{family}]"]
    parts.insert(rng.randint(0, len(parts)), f"'{word}'")
    for _ in range(rng.randint(0, max_fillers)):
        parts.insert(rng.randint(0, len(parts)), rng.choice(_fillers()))
    text = " ".join(parts) + rng.choice(".?:")
    return text[0].upper() + text[1:], FUNCTIONS[family](word)


def _cue(family: str, rng: random.Random) -> list[str]:
    """Return the words of a cue of `family`, some of them lost, but never all."""
    words = rng.choice(_CUES[family]).split()
    return [word for word in words if rng.random() >= _WORD_DROPOUT] or words


@cache
def _fillers() -> tuple[str, ...]:
    return tuple(_FILLER.split())


def _syllables(rng: random.Random) -> str:
    letters = ""
    while len(letters) < 3 or (len(letters) < 8 and rng.random() < 0.75):
        letters += rng.choice(_CONSONANTS) + rng.choice(_VOWELS)
        if rng.random() < 0.35:
            letters += rng.choice(_CONSONANTS)
    return letters[: rng.randint(3, 9)]


def _random_letters(rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 9)))


def _training_word(rng: random.Random) -> str:
    return rng.choice(domain_words(rng.choice(domain_names()), "train"))
