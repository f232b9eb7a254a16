"""`ramole train retriever`: the adapters' samples make a new encoder version, in use if better.

read -> split -> tune -> describe every adapter -> store -> put in use. Nothing is written before
the training is over; the version counts from its card on, which is written after its files.
"""

import copy
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from ramole_core.retrieval.card import EncoderScores
from ramole_core.retrieval.encoder import Encoder
from ramole_core.retrieval.training import Recipe, fine_tune
from ramole_core.retrieval.tuning import Samples, Split, encode_all, held_out, tune
from ramole_core.training import TrainReport, TrainRetriever
from worker.encoder_source import EncoderSource, load_encoder_in_use
from worker.train.activation import decide
from worker.train.context import TrainContext
from worker.train.description import Describer
from worker.train.encoder_version import store_version
from worker.train.progress import Progress
from worker.train.sample_sets import read_sample_sets, registered_samples

TRIAL_STEPS: Final = 2
TRIAL_TEXTS: Final = 64
NOT_MEASURED: Final = (
    "stored but not in use: nothing was held out to judge it by (with under 5 samples of every "
    "adapter use --fraction below 1, or --activate always)"
)
NUM_EMBEDDINGS: Final = 2  # of all samples: before and after


def run(request: TrainRetriever, context: TrainContext) -> TrainReport:
    """Trains as `request` says. Raises InvalidInputError for samples that do not do, ConfigError
    for an encoder or a base model that cannot be loaded, UnavailableError; the store is unchanged
    then."""
    registered: Samples = {}
    if request.data is None:
        samples = registered = registered_samples(context, request.exclude)
    else:
        samples = read_sample_sets(Path(request.data), request.exclude)
    split = Split.draw(samples, request.fraction, request.seed)
    recipe = Recipe() if request.steps is None else Recipe(steps=request.steps)
    settings = context.settings
    torch.set_num_threads(settings.torch_threads or len(os.sched_getaffinity(0)))
    encoder = Encoder.load(settings.encoder, settings.encoder_prefix)
    describer = Describer(request, context, registered)
    job = Job(request, samples, split, recipe, encoder, describer)
    return _estimated(job, context) if request.dry_run else _trained(job, context)


@dataclass(frozen=True)
class Job:
    """What one run works on."""

    request: TrainRetriever
    samples: Samples
    split: Split
    recipe: Recipe
    encoder: Encoder  # RAMOLE_ENCODER's own
    describer: Describer

    def report(self, **results: Any) -> TrainReport:
        """What the run came to."""
        return TrainReport(
            kind="retriever",
            num_adapters=len(self.split.training),
            num_examples=sum(map(len, self.split.training.values())),
            num_parameters=sum(p.numel() for p in self.encoder.model.parameters()),
            num_steps=self.recipe.steps,
            **results,
        )


def _trained(job: Job, context: TrainContext) -> TrainReport:
    began = time.monotonic()
    context.progress.say(f"embedding {sum(map(len, job.samples.values()))} samples")
    serving = _serving_scores(job, context)
    with context.progress.running():
        show = partial(_show, context.progress, job.recipe.steps)
        name = Path(context.settings.encoder).name
        tuned = tune(job.encoder, name, job.samples, job.split, job.recipe, job.request.seed, show)
    described = job.describer.describe(tuned)
    version = store_version(job.request, context, tuned, job.split, job.recipe, described)
    before, after = _overall(tuned.before), _overall(tuned.after)
    better = after is not None and after > max(before or 0.0, serving or 0.0)
    active, verdict = decide(context, "encoder", version, better, job.request.activate)
    if after is None and not active:
        verdict = f"{NOT_MEASURED}; `ramole encoders use {version}` puts it in use"
    return job.report(
        version=version,
        active=active,
        verdict=verdict,
        stopped_by="steps",
        held_out_before=before,
        held_out_serving=serving,
        held_out_after=after,
        seconds=round(time.monotonic() - began, 1),
    )


def _estimated(job: Job, context: TrainContext) -> TrainReport:
    """What the run would be, from two steps on a copy, a few embedded samples and a few answers."""
    texts = [text for found in job.samples.values() for text in found]
    some = texts[:: max(1, len(texts) // TRIAL_TEXTS)][:TRIAL_TEXTS]
    began = time.monotonic()
    job.encoder.encode(some)
    embedding = (time.monotonic() - began) / len(some)
    trial = replace(job.recipe, steps=TRIAL_STEPS)
    began = time.monotonic()
    fine_tune(copy.deepcopy(job.encoder.model), job.split.texts(job.samples), trial, 0)
    step = (time.monotonic() - began) / TRIAL_STEPS
    seconds = step * job.recipe.steps + NUM_EMBEDDINGS * embedding * len(texts)
    return job.report(
        version=None,
        active=False,
        verdict="a dry run: nothing was stored",
        stopped_by="dry-run",
        held_out_before=None,
        held_out_serving=None,
        held_out_after=None,
        seconds=round(seconds + job.describer.estimated_seconds(), 1),
    )


def _serving_scores(job: Job, context: TrainContext) -> float | None:
    """Of the encoder in use, when it is not the one that the training begins from. It may have
    learnt from some of these samples; that only makes it harder to replace."""
    in_use = context.activations.active().encoder
    if job.request.activate != "if-better" or in_use in ("", job.encoder.version):
        return None
    source = EncoderSource(context.store, context.settings)
    serving = load_encoder_in_use(context.activations, source)
    found = held_out(encode_all(serving, job.samples), job.samples, job.split)
    return None if found is None else found.scores().overall


def _overall(scores: EncoderScores | None) -> float | None:
    return None if scores is None else scores.overall


def _show(progress: Progress, steps: int, step: int, loss: float) -> None:
    progress.step(step + 1, steps, f"loss {loss:.3f}")
