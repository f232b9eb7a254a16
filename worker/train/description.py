"""The vectors of all adapters under a new encoder: what their samples say, and what they can do."""

import time
from dataclasses import dataclass

import numpy as np

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.samples import parse_samples
from ramole_core.retrieval.affinity import NUM_PROMPTS, measure, mixed
from ramole_core.retrieval.card import ConfidenceScale
from ramole_core.retrieval.encoder import Vectors, adapter_vector
from ramole_core.retrieval.tuning import Tuned
from ramole_core.retrieval.vectors import samples_key
from ramole_core.training import TrainRetriever
from worker.train.base import Workbench
from worker.train.context import TrainContext
from worker.train.solo import SoloAnswers


@dataclass(frozen=True)
class Description:
    """Adapter -> (D,), of every active adapter, those left out of the training too; and how sure
    they are of their answers (None: they were not asked)."""

    vectors: dict[AdapterRef, Vectors]
    confidence: ConfidenceScale | None = None


def describe_adapters(request: TrainRetriever, context: TrainContext, tuned: Tuned) -> Description:
    """Embeds what was not embedded yet, and has the adapters answer samples of each other.

    Raises ConfigError when that needs a base model that cannot be loaded here.
    """
    refs = list(context.registry.active().values())
    if not refs:
        return Description({})
    samples = [parse_samples(context.store.get(samples_key(ref))) for ref in refs]
    vectors = np.stack(
        [_vector(request, tuned, ref, texts) for ref, texts in zip(refs, samples, strict=True)]
    )  # (N, D)
    if not request.neighbours:
        return Description(dict(zip(refs, vectors, strict=True)))
    solo = SoloAnswers(Workbench.open(context), context, refs)
    with context.progress.running():
        found = measure(samples, vectors, request.neighbours, solo.answer)
    vectors = mixed(vectors, found.affinity)
    return Description(dict(zip(refs, vectors, strict=True)), found.confidence)


def estimated_seconds(request: TrainRetriever, context: TrainContext) -> float:
    """How long the adapters would take to answer, from a few answers of the first one."""
    refs = list(context.registry.active().values())
    if not request.neighbours or not refs:
        return 0.0
    solo = SoloAnswers(Workbench.open(context), context, refs)
    samples = parse_samples(context.store.get(samples_key(refs[0])))[:NUM_PROMPTS]
    began = time.monotonic()
    with context.progress.running():
        solo.answer([(0, text) for text in samples])
    seconds = (time.monotonic() - began) / len(samples)
    num_pupils = 1 + min(request.neighbours, len(refs) - 1)
    return seconds * len(refs) * num_pupils * NUM_PROMPTS


def _vector(request: TrainRetriever, tuned: Tuned, ref: AdapterRef, samples: list[str]) -> Vectors:
    known = tuned.vectors.get(ref.name) if request.data is None else None
    return adapter_vector(tuned.encoder.encode(samples) if known is None else known)
