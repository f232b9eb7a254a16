"""`ramole train retriever`: the adapters' samples make a new encoder version, in use if better.

read -> split -> tune -> describe every adapter -> store -> put in use. Nothing is written before
the training is over; the version counts from its card on, which is written after its files.
"""

import copy
import dataclasses
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

import torch

from ramole_core.jobs import utc_now
from ramole_core.retrieval.card import ConfidenceScale, EncoderCard, EncoderScores
from ramole_core.retrieval.encoder import Encoder
from ramole_core.retrieval.encoder_store import store_encoder
from ramole_core.retrieval.training import Recipe, fine_tune
from ramole_core.retrieval.tuning import (
    Samples,
    Split,
    Tuned,
    encode_all,
    held_out,
    tune,
)
from ramole_core.retrieval.vectors import VectorShelf
from ramole_core.training import TrainReport, TrainRetriever
from worker.encoder_source import EncoderSource, load_encoder_in_use
from worker.train.activation import decide
from worker.train.context import TrainContext
from worker.train.description import describe_adapters
from worker.train.progress import Progress
from worker.train.sample_sets import read_sample_sets, registered_samples

TRIAL_STEPS: Final = 2
TRIAL_TEXTS: Final = 64
NUM_EMBEDDINGS: Final = 3  # of all samples: before, after, and once more for the store


def run(request: TrainRetriever, context: TrainContext) -> TrainReport:
    """Trains as `request` says. Raises InvalidInputError for samples that do not do, ConfigError
    for an encoder that cannot be loaded, UnavailableError; the store is unchanged then."""
    began = time.monotonic()
    if request.data is None:
        samples = registered_samples(context, request.exclude)
    else:
        samples = read_sample_sets(Path(request.data), request.exclude)
    split = Split.draw(samples, request.fraction, request.seed)
    recipe = Recipe() if request.steps is None else Recipe(steps=request.steps)
    settings = context.settings
    torch.set_num_threads(settings.torch_threads or len(os.sched_getaffinity(0)))
    encoder = Encoder.load(settings.encoder, settings.encoder_prefix)
    report = partial(
        TrainReport,
        kind="retriever",
        num_adapters=len(split.training),
        num_examples=sum(map(len, split.training.values())),
        num_parameters=sum(p.numel() for p in encoder.model.parameters()),
        num_steps=recipe.steps,
    )
    if request.dry_run:
        return report(
            version=None,
            active=False,
            verdict="a dry run: nothing was stored",
            stopped_by="dry-run",
            held_out_before=None,
            held_out_serving=None,
            held_out_after=None,
            seconds=_estimate(encoder, samples, split, recipe),
        )
    context.progress.say(f"embedding {sum(map(len, samples.values()))} samples")
    serving = _serving_scores(context, encoder, samples, split)
    with context.progress.running():
        show = partial(_show, context.progress, recipe.steps)
        name = Path(settings.encoder).name
        tuned = tune(encoder, name, samples, split, recipe, request.seed, show)
    described = describe_adapters(request, context, tuned)
    version = _store(request, context, tuned, split, recipe, described.confidence)
    shelf = VectorShelf(context.store, version, tuned.encoder.encode, tuned.encoder.width)
    for (
        ref,
        vector,
    ) in described.vectors.items():  # so that workers have an index as soon as they switch
        shelf.keep(ref, vector)
    before, after = _overall(tuned.before), _overall(tuned.after)
    better = after is not None and after > max(before or 0.0, serving or 0.0)
    active, verdict = decide(context, "encoder", version, better, request.activate)
    return report(
        version=version,
        active=active,
        verdict=verdict,
        stopped_by="steps",
        held_out_before=before,
        held_out_serving=serving,
        held_out_after=after,
        seconds=round(time.monotonic() - began, 1),
    )


def _serving_scores(
    context: TrainContext, own: Encoder, samples: Samples, split: Split
) -> float | None:
    """Of the encoder in use, when it is not the one that the training begins from. It may have
    learnt from some of these samples; that only makes it harder to replace."""
    if context.activations.active().encoder in ("", own.version):
        return None
    source = EncoderSource(context.store, context.settings)
    serving = load_encoder_in_use(context.activations, source)
    found = held_out(encode_all(serving, samples), samples, split)
    return None if found is None else found.scores().overall


def _store(
    request: TrainRetriever,
    context: TrainContext,
    tuned: Tuned,
    split: Split,
    recipe: Recipe,
    confidence: ConfidenceScale | None,
) -> str:
    """Stores the version and returns its name. From here on the run cannot be interrupted."""
    settings = context.settings
    card = EncoderCard(
        version=tuned.encoder.version,
        trained_from=settings.encoder,
        prefix=settings.encoder_prefix,
        max_tokens=tuned.max_tokens,
        tau=tuned.encoder.tau,
        floor=tuned.floor,
        adapters=tuple(split.training),
        fraction=request.fraction,
        seed=request.seed,
        steps=recipe.steps,
        neighbours=request.neighbours,
        confidence=confidence,
        held_out_before=tuned.before,
        held_out_after=tuned.after,
        files={},
        created_at=utc_now().isoformat(timespec="seconds"),
    )
    temporary = settings.home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=temporary, prefix="encoder-") as folder:
        tuned.encoder.model.save_pretrained(folder, create_model_card=False)
        context.interrupts.ignore()
        return store_encoder(context.store, Path(folder), card).version


def _estimate(encoder: Encoder, samples: Samples, split: Split, recipe: Recipe) -> float:
    """Seconds of the whole run, from two steps on a copy and a few embedded samples."""
    texts = [text for found in samples.values() for text in found]
    began = time.monotonic()
    encoder.encode(texts[:: max(1, len(texts) // TRIAL_TEXTS)][:TRIAL_TEXTS])
    embedding = (time.monotonic() - began) / min(len(texts), TRIAL_TEXTS)
    trial = dataclasses.replace(recipe, steps=TRIAL_STEPS)
    began = time.monotonic()
    fine_tune(copy.deepcopy(encoder.model), split.texts(samples), trial, 0)
    step = (time.monotonic() - began) / TRIAL_STEPS
    return round(step * recipe.steps + NUM_EMBEDDINGS * embedding * len(texts), 1)


def _overall(scores: EncoderScores | None) -> float | None:
    return None if scores is None else scores.overall


def _show(progress: Progress, steps: int, step: int, loss: float) -> None:
    progress.step(step + 1, steps, f"loss {loss:.3f}")
