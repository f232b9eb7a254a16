"""Within-adapter whitening of sentence vectors, as one more layer of the encoder.

Directions in which the samples of one adapter differ (what a prompt is about) count less,
directions in which adapters differ count more. The map is affine, so it travels inside the model
in sentence-transformers' own format: Dense with identity activation, then Normalize.
Dims: N adapters, M samples of one adapter, D width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ramole_core.retrieval.encoder import Vectors, adapter_vector


def whitening(samples: Sequence[Vectors], shrinkage: float) -> tuple[Vectors, Vectors]:
    """(weight (D, D), bias (D,)) of x -> C^(-1/2) (x - μ), from unit vectors (M, D) per adapter.

    μ is the mean of the adapter vectors; C = (1 - λ) W + λ tr(W)/D · I with the pooled covariance W
    of the samples around their own adapter's mean, λ = `shrinkage` in (0, 1], scaled to trace D.
    """
    width = samples[0].shape[1]
    center = np.mean([adapter_vector(vectors) for vectors in samples], axis=0)  # (D,)
    residuals = np.concatenate([vectors - vectors.mean(axis=0) for vectors in samples])
    within = residuals.T @ residuals / len(residuals)  # (D, D)
    scale = max(float(np.trace(within)) / width, 1e-12)
    shrunk = (1 - shrinkage) * within / scale + shrinkage * np.eye(width)
    values, basis = np.linalg.eigh(shrunk.astype(np.float64))
    weight = (basis / np.sqrt(values)) @ basis.T  # (D, D), symmetric
    return weight.astype(np.float32), (-weight @ center).astype(np.float32)


def whiten(vectors: Vectors, weight: Vectors, bias: Vectors) -> Vectors:
    """The map and a normalisation: (M, D) -> (M, D), what the added layers do."""
    mapped = vectors @ weight.T + bias
    length = np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)
    return np.asarray(mapped / length, dtype=np.float32)


def whitened_model(model: Any, weight: Vectors, bias: Vectors) -> Any:
    """A sentence-transformers model with the map and a normalisation behind `model`'s modules,
    which it shares."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize

    dense = Dense(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        activation_function=torch.nn.Identity(),
        init_weight=torch.from_numpy(weight),
        init_bias=torch.from_numpy(bias),
    )
    modules = [*model, Normalize(), dense, Normalize()]  # the map was fitted on unit vectors
    return SentenceTransformer(modules=modules, device=str(model.device))
