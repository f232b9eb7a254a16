"""The vectors of all adapters under a new encoder: what their samples say, and what they can do."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.samples import parse_samples
from ramole_core.errors import AdapterRefusedError, NotFoundError
from ramole_core.retrieval.affinity import NUM_PROMPTS, measure, mixed
from ramole_core.retrieval.card import ConfidenceScale
from ramole_core.retrieval.encoder import Vectors, adapter_vector
from ramole_core.retrieval.tuning import Samples, Tuned
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


class Describer:
    """The active adapters with their samples, and what has them answered. Opened before anything
    is trained: what cannot be read or loaded is found out first. An adapter whose samples cannot
    be read is left out with a word, as retrieval does. `known`: registered samples that were read.

    Raises ConfigError when the answers need a base model that cannot be loaded here.
    """

    def __init__(self, request: TrainRetriever, context: TrainContext, known: Samples) -> None:
        self._request = request
        self._context = context
        self._samples: dict[AdapterRef, Sequence[str]] = {}
        for name, ref in context.registry.active().items():
            try:
                found = known.get(name) or parse_samples(context.store.get(samples_key(ref)))
                self._samples[ref] = found
            except (NotFoundError, AdapterRefusedError) as e:
                context.progress.say(f"adapter {ref} will not be found: {e}")
        refs = list(self._samples)
        wanted = request.neighbours and refs
        self._solo = SoloAnswers(Workbench.open(context), context, refs) if wanted else None

    def describe(self, tuned: Tuned) -> Description:
        """Embeds what was not embedded yet, and has the adapters answer samples of each other."""
        if not self._samples:
            return Description({})
        samples = list(self._samples.values())
        vectors = np.stack([self._vector(tuned, ref) for ref in self._samples])  # (N, D)
        if self._solo is None:
            return Description(dict(zip(self._samples, vectors, strict=True)))
        with self._context.progress.running():
            found = measure(samples, vectors, self._request.neighbours, self._solo.answer)
        vectors = mixed(vectors, found.affinity)
        return Description(dict(zip(self._samples, vectors, strict=True)), found.confidence)

    def estimated_seconds(self) -> float:
        """How long the adapters would take to answer, from a few answers of the first one."""
        if self._solo is None:
            return 0.0
        texts = next(iter(self._samples.values()))[:NUM_PROMPTS]
        began = time.monotonic()
        with self._context.progress.running():
            self._solo.answer([(0, text) for text in texts])
        seconds = (time.monotonic() - began) / len(texts)
        num_pupils = 1 + min(self._request.neighbours, len(self._samples) - 1)
        return seconds * len(self._samples) * num_pupils * NUM_PROMPTS

    def _vector(self, tuned: Tuned, ref: AdapterRef) -> Vectors:
        known = tuned.vectors.get(ref.name) if self._request.data is None else None
        if known is None:
            known = tuned.encoder.encode(list(self._samples[ref]))
        return adapter_vector(known)
