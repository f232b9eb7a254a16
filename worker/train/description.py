"""The vectors of all adapters under a new encoder: what their samples say, and what they can do."""

import numpy as np

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.samples import parse_samples
from ramole_core.retrieval.affinity import measure, mixed
from ramole_core.retrieval.encoder import Vectors, adapter_vector
from ramole_core.retrieval.tuning import Tuned
from ramole_core.retrieval.vectors import samples_key
from ramole_core.training import TrainRetriever
from worker.train.base import Workbench
from worker.train.context import TrainContext
from worker.train.solo import SoloAnswers


def describe_adapters(
    request: TrainRetriever, context: TrainContext, tuned: Tuned
) -> dict[AdapterRef, Vectors]:
    """The vector (D,) of every active adapter, those left out of the training too."""
    refs = list(context.registry.active().values())
    if not refs:
        return {}
    samples = [parse_samples(context.store.get(samples_key(ref))) for ref in refs]
    vectors = np.stack(
        [_vector(request, tuned, ref, texts) for ref, texts in zip(refs, samples, strict=True)]
    )  # (N, D)
    if request.neighbours and len(refs) > 1:
        solo = SoloAnswers(Workbench.open(context), context, refs)
        with context.progress.running():
            vectors = mixed(vectors, measure(samples, vectors, request.neighbours, solo.answer))
    return dict(zip(refs, vectors, strict=True))


def _vector(request: TrainRetriever, tuned: Tuned, ref: AdapterRef, samples: list[str]) -> Vectors:
    known = tuned.vectors.get(ref.name) if request.data is None else None
    return adapter_vector(tuned.encoder.encode(samples) if known is None else known)
