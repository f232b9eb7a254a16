"""Adapter vectors in the store: made once per (encoder version, adapter version)."""

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any, Final

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
    """Reads an adapter's vector, or makes it from the stored samples when it is missing.

    `trained` (NAME@VERSION -> SHA-256) names those that came out of the encoder's training: samples
    alone do not give them again, so they are read as they were stored, or not at all.
    """

    def __init__(
        self,
        store: ObjectStore,
        encoder_version: str,
        embed: Embed,
        width: int,
        trained: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._version = encoder_version
        self._embed = embed
        self._width = width
        self._trained = trained or {}

    def describe(self, ref: AdapterRef, samples: list[str]) -> Vectors:
        """Embeds the samples and stores the vector. Idempotent: same samples, same bytes."""
        slices = [samples[i : i + SLICE] for i in range(0, len(samples), SLICE)]
        vector = adapter_vector(np.concatenate([self._embed(texts) for texts in slices]))
        self.keep(ref, vector)
        return vector

    def keep(self, ref: AdapterRef, vector: Vectors) -> str:
        """Stores the adapter's vector (D,); the SHA-256 of what was stored."""
        buffer = io.BytesIO()
        np.save(buffer, vector, allow_pickle=False)
        data = buffer.getvalue()
        self._store.put(keys.vector(self._version, ref), data)
        return hashlib.sha256(data).hexdigest()

    def vector(self, ref: AdapterRef) -> Vectors:
        """(D,) float32, made anew from the samples when it is missing or damaged.

        Raises NotFoundError, AdapterRefusedError when the samples are gone or damaged too, or
        the vector is one that only the training can give.
        """
        try:
            return self._read(ref)
        except (NotFoundError, ValueError) as e:
            if str(ref) in self._trained:
                raise NotFoundError(
                    f"its vector under encoder {self._version} is gone or damaged, and jobs pin "
                    "that version: restore it, or train the retriever again"
                ) from e
            return self.describe(ref, parse_samples(self._store.get(samples_key(ref))))

    def _read(self, ref: AdapterRef) -> Vectors:
        data = self._store.get(keys.vector(self._version, ref))
        wanted = self._trained.get(str(ref))
        if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
            raise ValueError("not the vector that was trained")
        try:
            vector = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as e:  # numpy's reader raises a dozen kinds, of its tokenizer for one
            raise ValueError(f"not a .npy file: {type(e).__name__}") from e
        return self._checked(vector)

    def _checked(self, vector: Any) -> Vectors:
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float32:  # or an archive's
            raise ValueError("not an array of float32")
        if vector.shape != (self._width,) or not np.isfinite(vector).all():
            raise ValueError("not a vector of this encoder")
        return np.asarray(vector, dtype=np.float32)


def samples_key(ref: AdapterRef) -> str:
    """Where the samples of an adapter version lie."""
    return keys.adapter(ref) + SAMPLES_FILE
