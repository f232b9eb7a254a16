"""The retrieval prior of training examples: their prompts against the adapters, as a worker sees
them.
"""

import dataclasses
from collections.abc import Sequence

from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.router_examples import Example
from ramole_core.retrieval.encoder import Encoder
from ramole_core.retrieval.vectors import VectorShelf
from worker.encoder_source import EncoderSource, load_encoder_in_use
from worker.train.context import TrainContext


def encoder_in_use(context: TrainContext) -> Encoder:
    """Loads it. Raises ConfigError when that cannot be done here."""
    source = EncoderSource(context.store, context.settings)
    return load_encoder_in_use(context.activations, source)


def with_similarities(
    context: TrainContext,
    encoder: Encoder,
    examples: Sequence[Example],
    prompts: Sequence[str],
    adapters: Sequence[AdapterRef],
) -> list[Example]:
    """The examples with the cosine of each one's prompt to every one of `adapters`."""
    shelf = VectorShelf(
        context.store, encoder.version, encoder.encode, encoder.width, encoder.vectors
    )
    described = {ref: shelf.vector(ref) for ref in adapters}  # (D,) each, of unit length
    vectors = encoder.encode(list(prompts))  # (N, D)
    return [
        dataclasses.replace(
            example, similarities={ref: float(v @ vector) for ref, v in described.items()}
        )
        for example, vector in zip(examples, vectors, strict=True)
    ]
