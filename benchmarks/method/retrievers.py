"""The retrievers of the table: the packaged MiniLM, and what the product makes of it from the zoo's
own sample prompts, all adapters taking part. No other prompt is looked at.

- `minilm` as it is; `minilm-affinity` with mixed vectors: no training at all.
- `whitened`: MiniLM behind the whitening layer (no gradient, nothing random).
- `tuned`: fine-tuned weights; `tuned-whitened`: with the whitening layer.
- `trained`: with affinity-mixed vectors too, what `ramole train retriever` gives by default.

The prior's temperature is the gate's own everywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from benchmarks.method.answers import Answers, single
from benchmarks.method.cases import Zoo, ref_of
from benchmarks.method.retrieval import Retrieval, described
from benchmarks.method.rows import Default
from ramole_core.mole.gates import TAU
from ramole_core.retrieval.affinity import Measured, Said, measure
from ramole_core.retrieval.encoder import PACKAGED, Encoder, Vectors
from ramole_core.retrieval.training import Recipe
from ramole_core.retrieval.tuning import Split, encode_all, tune
from ramole_core.retrieval.whitening import whitened_model, whitening

DEFAULT: Final = Default(gate="cascade", retriever="trained")  # chosen on the development prompts
NEIGHBOURS: Final = 8
RECIPE: Final = Recipe()


def minilm(zoo: Zoo) -> Retrieval:
    """MiniLM as it is: what the published baselines retrieve with."""
    return Retrieval.of("minilm", Encoder.load(PACKAGED), zoo, tau=TAU)


def untrained(zoo: Zoo, answers: Answers) -> Iterator[Retrieval]:
    """What an operator has without fine-tuning; nothing is random."""
    plain = Encoder.load(PACKAGED)
    known = affinity(zoo, answers, described(plain, zoo))
    yield Retrieval.of("minilm-affinity", plain, zoo, known, tau=TAU)
    weight, bias = whitening(list(encode_all(plain, zoo.samples).values()), RECIPE.shrinkage)
    model = whitened_model(plain.model, weight, bias)
    yield Retrieval.of("whitened", Encoder(model, f"{plain.version}-whitened"), zoo, tau=TAU)


def trained(zoo: Zoo, answers: Answers, seed: int, steps: int) -> Iterator[Retrieval]:
    """One training of the product, and what it would be without its last steps."""
    recipe = replace(RECIPE, steps=steps)
    split = Split.draw(zoo.samples, 1.0, seed)
    tuned = tune(Encoder.load(PACKAGED), PACKAGED, zoo.samples, split, recipe, seed)
    known = affinity(zoo, answers, described(tuned.encoder, zoo))
    yield Retrieval.of("trained", tuned.encoder, zoo, known, tau=TAU)
    yield Retrieval.of("tuned-whitened", tuned.encoder, zoo, tau=TAU)
    yield Retrieval.of("tuned", tuned.plain, zoo, tau=TAU)


def affinity(zoo: Zoo, answers: Answers, vectors: Vectors) -> Measured:
    """Affinities (A, A) by the engine's answers to the samples: vectors (A, D)."""

    def answer(pairs: Sequence[tuple[int, str]]) -> list[Said | None]:
        asked = [single(text, ref_of(zoo.adapters[place])) for place, text in pairs]
        return [Said(found.text, found.confidence or 0.0) for found in answers.ask(asked)]

    samples = [zoo.samples[name] for name in zoo.adapters]
    return measure(samples, vectors, NEIGHBOURS, answer)
