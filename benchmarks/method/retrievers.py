"""The retrievers of the table: the packaged MiniLM as it is, and what the product's training makes
of it from the zoo's own sample prompts, all adapters taking part.

`tuned-whitened` is what `ramole train retriever` gives by default; `tuned` the same weights without
the whitening layer, `whitened` that layer alone (no gradient, nothing random). Each has the
temperature of its prior from the samples, leave one out; no other prompt is looked at.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from benchmarks.method.cases import Zoo
from benchmarks.method.rows import Default
from ramole_core.retrieval.encoder import PACKAGED, Encoder
from ramole_core.retrieval.scores import LeaveOneOut
from ramole_core.retrieval.training import Recipe
from ramole_core.retrieval.tuning import Split, encode_all, tune
from ramole_core.retrieval.whitening import whitened_model, whitening

DEFAULT: Final = Default(gate="cascade", retriever="tuned-whitened")
RECIPE: Final = Recipe()


def trained_encoders(zoo: Zoo, seed: int, steps: int, first: bool) -> Iterator[tuple[str, Encoder]]:
    """(name, encoder) of one seed, the one without anything random only when it is the `first`."""
    if first:
        yield "whitened", _whitened(zoo)
    recipe = replace(RECIPE, steps=steps)
    split = Split.draw(zoo.samples, 1.0, seed)
    tuned = tune(Encoder.load(PACKAGED), PACKAGED, zoo.samples, split, recipe, seed)
    yield "tuned-whitened", tuned.encoder
    yield "tuned", _with_tau(tuned.plain, zoo)


def _whitened(zoo: Zoo) -> Encoder:
    plain = Encoder.load(PACKAGED)
    weight, bias = whitening(list(encode_all(plain, zoo.samples).values()), RECIPE.shrinkage)
    model = whitened_model(plain.model, weight, bias)
    return _with_tau(Encoder(model, f"{plain.version}-whitened"), zoo)


def _with_tau(encoder: Encoder, zoo: Zoo) -> Encoder:
    """The encoder with the temperature that the product's training would give it."""
    encoder.tau = LeaveOneOut.of(list(encode_all(encoder, zoo.samples).values())).best_tau()
    return encoder
