"""From an encoder and the samples of many adapters to a better version of it, with the evidence.

split -> fine-tune -> whiten -> judge. The judgement uses samples that gave no gradient, under a
whitening that never saw them; the finished encoder is whitened with all samples. Dims: N adapters.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ramole_core.errors import InvalidInputError
from ramole_core.retrieval.card import EncoderScores
from ramole_core.retrieval.encoder import Encoder, Vectors, version_of
from ramole_core.retrieval.scores import LeaveOneOut
from ramole_core.retrieval.training import OnStep, Recipe, fine_tune
from ramole_core.retrieval.truncation import MiddleCut
from ramole_core.retrieval.whitening import whiten, whitened_model, whitening

HELD_OUT_SHARE: Final = 0.2  # of every adapter's samples, when no adapter is held out as a whole
LEAST_TO_HOLD_OUT: Final = 5  # an adapter with fewer samples keeps them all
Samples = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Split:
    """Which samples give gradients: adapter -> places of its samples."""

    training: dict[str, tuple[int, ...]]

    @classmethod
    def draw(cls, samples: Samples, fraction: float, seed: int) -> "Split":
        """`fraction` of the adapters, drawn by `seed`; of all adapters, four fifths of the samples.

        Raises InvalidInputError for fewer than two adapters, or an adapter with one sample.
        """
        for name, texts in samples.items():
            if len(texts) < 2:
                raise InvalidInputError(
                    f"adapter {name!r} has {len(texts)} sample prompt; training needs at least 2 "
                    "of every adapter: upload it with more, or leave it out with --exclude"
                )
        rng = random.Random(seed)
        count = round(fraction * len(samples))
        if count < 2:
            raise InvalidInputError(
                f"{fraction:g} of {len(samples)} adapters are {count}; training needs at least 2"
            )
        chosen = sorted(rng.sample(sorted(samples), count))
        if count < len(samples):
            return cls({name: tuple(range(len(samples[name]))) for name in chosen})
        return cls({name: _kept(len(samples[name]), rng) for name in chosen})

    def texts(self, samples: Samples) -> list[list[str]]:
        """What gives gradients, one list for each adapter in training. A text that several of them
        have says nothing about which is meant: it is left out where two others remain."""
        owners = Counter(
            text
            for name, places in self.training.items()
            for text in {samples[name][i].strip() for i in places}
        )
        found = []
        for name, places in self.training.items():
            texts = [samples[name][i] for i in places]
            own = [text for text in texts if owners[text.strip()] == 1]
            found.append(own if len(own) >= 2 else texts)
        return found

    def held_out(self, samples: Samples) -> list[tuple[str, int]]:
        """(adapter, place) of every sample that gives none, in the order of `samples`; copies of
        texts that do give some are neither."""
        kept = {name: set(places) for name, places in self.training.items()}
        learnt = {
            samples[name][i].strip() for name, places in self.training.items() for i in places
        }
        return [
            (name, i)
            for name, texts in samples.items()
            for i, text in enumerate(texts)
            if i not in kept.get(name, ()) and text.strip() not in learnt
        ]


@dataclass(frozen=True)
class Tuned:
    """A finished encoder; `before` and `after` are scores of the held-out samples (None: there
    are none). `floor`: see EncoderCard."""

    encoder: Encoder  # ends in its whitening
    plain: Encoder  # the same without it
    max_tokens: int
    floor: float
    before: EncoderScores | None
    after: EncoderScores | None
    plain_vectors: dict[str, Vectors]  # adapter -> (M, D), its samples under `plain`
    vectors: dict[str, Vectors]  # the same under `encoder`


def tune(
    encoder: Encoder,
    name: str,
    samples: Samples,
    split: Split,
    recipe: Recipe,
    seed: int,
    on_step: OnStep = lambda step, loss: None,
) -> Tuned:
    """Trains `encoder`'s model in place; `name` is what it was loaded from."""
    before = held_out(encode_all(encoder, samples), samples, split)
    fine_tune(encoder.model, split.texts(samples), recipe, seed, on_step)
    cut = MiddleCut.of(encoder.model, recipe.max_tokens)
    plain = Encoder(encoder.model, "", encoder.prefix, cut=cut)
    plain_vectors = encode_all(plain, samples)
    weight, bias = whitening(list(plain_vectors.values()), recipe.shrinkage)
    vectors = {adapter: whiten(found, weight, bias) for adapter, found in plain_vectors.items()}
    after = held_out(_judged(plain_vectors, split, recipe), samples, split)
    fitted = after if after is not None else LeaveOneOut.of(list(vectors.values()))
    model = whitened_model(encoder.model, weight, bias)
    version = version_of(f"{name}-tuned", encoder.prefix, model)
    return Tuned(
        encoder=Encoder(model, version, encoder.prefix, cut=cut),
        plain=plain,
        max_tokens=recipe.max_tokens,
        floor=fitted.floor(),
        before=None if before is None else before.scores(),
        after=None if after is None else after.scores(),
        plain_vectors=plain_vectors,
        vectors=vectors,
    )


def encode_all(encoder: Encoder, samples: Samples) -> dict[str, Vectors]:
    """Adapter -> (M, D) unit vectors of its samples."""
    flat = encoder.encode([text for texts in samples.values() for text in texts])
    ends = np.cumsum([len(texts) for texts in samples.values()])
    return dict(zip(samples, np.split(flat, ends[:-1]), strict=True))


def held_out(vectors: Mapping[str, Vectors], samples: Samples, split: Split) -> LeaveOneOut | None:
    """The samples that give no gradient, leave one out; None when there are none."""
    chosen = set(split.held_out(samples))
    if not chosen:
        return None
    marks = [(name, i) in chosen for name, texts in samples.items() for i in range(len(texts))]
    return LeaveOneOut.of([vectors[name] for name in samples]).rows(np.array(marks))


def _judged(plain: Mapping[str, Vectors], split: Split, recipe: Recipe) -> dict[str, Vectors]:
    """All samples under a whitening of the training samples alone."""
    known = [plain[name][list(places)] for name, places in split.training.items()]
    weight, bias = whitening(known, recipe.shrinkage)
    return {name: whiten(vectors, weight, bias) for name, vectors in plain.items()}


def _kept(count: int, rng: random.Random) -> tuple[int, ...]:
    """Places of the samples that give gradients, of an adapter with `count`."""
    num_held_out = round(HELD_OUT_SHARE * count) if count >= LEAST_TO_HOLD_OUT else 0
    return tuple(sorted(rng.sample(range(count), count - num_held_out)))
