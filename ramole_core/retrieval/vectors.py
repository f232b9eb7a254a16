"""Adapter vectors in the store: made once per (encoder version, adapter version)."""

import io
import json
from collections.abc import Callable

import numpy as np

from ramole_core import keys
from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import NotFoundError
from ramole_core.retrieval.encoder import Vectors, adapter_vector
from ramole_core.store import ObjectStore

Embed = Callable[[list[str]], Vectors]


class VectorShelf:
    """Reads an adapter's vector, or makes it from the stored samples when it is missing."""

    def __init__(self, store: ObjectStore, encoder_version: str, embed: Embed) -> None:
        self._store = store
        self._version = encoder_version
        self._embed = embed

    def describe(self, ref: AdapterRef, samples: list[str]) -> Vectors:
        """Embeds the samples and stores the vector. Idempotent: same samples, same bytes."""
        vector = adapter_vector(self._embed(samples))
        buffer = io.BytesIO()
        np.save(buffer, vector, allow_pickle=False)
        self._store.put(keys.vector(self._version, ref), buffer.getvalue())
        return vector

    def vector(self, ref: AdapterRef) -> Vectors:
        """(D,) float32. Raises NotFoundError when the adapter has neither vector nor samples."""
        try:
            data = self._store.get(keys.vector(self._version, ref))
        except NotFoundError:
            lines = self._store.get(keys.adapter(ref) + "samples.jsonl").decode().splitlines()
            return self.describe(ref, [json.loads(line) for line in lines if line.strip()])
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        return np.asarray(loaded, dtype=np.float32)
