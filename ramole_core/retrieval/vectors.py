"""Adapter vectors in the store: made once per (encoder version, adapter version)."""

import io
from collections.abc import Callable
from typing import Final

import numpy as np

from ramole_core import keys
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.samples import SAMPLES_FILE, parse_samples
from ramole_core.errors import NotFoundError
from ramole_core.retrieval.encoder import Vectors, adapter_vector
from ramole_core.store import ObjectStore

Embed = Callable[[list[str]], Vectors]
SLICE: Final = 32  # samples per call: an upload of a thousand keeps no search waiting


class VectorShelf:
    """Reads an adapter's vector, or makes it from the stored samples when it is missing."""

    def __init__(self, store: ObjectStore, encoder_version: str, embed: Embed, width: int) -> None:
        self._store = store
        self._version = encoder_version
        self._embed = embed
        self._width = width

    def describe(self, ref: AdapterRef, samples: list[str]) -> Vectors:
        """Embeds the samples and stores the vector. Idempotent: same samples, same bytes."""
        slices = [samples[i : i + SLICE] for i in range(0, len(samples), SLICE)]
        vector = adapter_vector(np.concatenate([self._embed(texts) for texts in slices]))
        self.keep(ref, vector)
        return vector

    def keep(self, ref: AdapterRef, vector: Vectors) -> None:
        """Stores the adapter's vector (D,)."""
        buffer = io.BytesIO()
        np.save(buffer, vector, allow_pickle=False)
        self._store.put(keys.vector(self._version, ref), buffer.getvalue())

    def vector(self, ref: AdapterRef) -> Vectors:
        """(D,) float32, made anew from the samples when it is missing or damaged.

        Raises NotFoundError, AdapterRefusedError when the samples are gone or damaged too.
        """
        try:
            data = self._store.get(keys.vector(self._version, ref))
            return self._checked(np.load(io.BytesIO(data), allow_pickle=False))
        except (NotFoundError, ValueError, EOFError, OSError):
            return self.describe(ref, parse_samples(self._store.get(samples_key(ref))))

    def _checked(self, vector: Vectors) -> Vectors:
        if vector.shape != (self._width,) or not np.isfinite(vector).all():
            raise ValueError("not a vector of this encoder")
        return np.asarray(vector, dtype=np.float32)


def samples_key(ref: AdapterRef) -> str:
    """Where the samples of an adapter version lie."""
    return keys.adapter(ref) + SAMPLES_FILE
