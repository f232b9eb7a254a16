"""A trained encoder becomes a version in the store, with the vectors of all adapters."""

import hashlib
import tempfile
from pathlib import Path
from typing import Final

from ramole_core.jobs import utc_now
from ramole_core.retrieval.card import EncoderCard
from ramole_core.retrieval.encoder_store import store_encoder
from ramole_core.retrieval.training import Recipe
from ramole_core.retrieval.tuning import Split, Tuned
from ramole_core.retrieval.vectors import VectorShelf
from ramole_core.training import TrainRetriever
from worker.train.context import TrainContext
from worker.train.description import Description

DIGEST_CHARS: Final = 8


def version_of(tuned: Tuned, described: Description) -> str:
    """A readable name and a digest of all that a similarity depends on: the encoder, and the
    vectors that it and the adapters' answers gave. The same training again gives the same version,
    and no version ever has two sets of vectors."""
    name = tuned.encoder.version.rpartition("-")[0]
    digest = hashlib.sha256(tuned.encoder.version.encode())
    for ref, vector in sorted(described.vectors.items()):
        digest.update(str(ref).encode())
        digest.update(vector.tobytes())
    digest.update(repr(described.confidence).encode())
    return f"{name}-{digest.hexdigest()[:DIGEST_CHARS]}"


def store_version(
    request: TrainRetriever,
    context: TrainContext,
    tuned: Tuned,
    split: Split,
    recipe: Recipe,
    described: Description,
) -> str:
    """Writes vectors and files, then the card, and returns the version's name. Until the card is
    there nothing has changed; from then on the run cannot be interrupted."""
    settings, version = context.settings, version_of(tuned, described)
    card = EncoderCard(
        version=version,
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
        confidence=described.confidence,
        held_out_before=tuned.before,
        held_out_after=tuned.after,
        files={},
        created_at=utc_now().isoformat(timespec="seconds"),
    )
    temporary = settings.home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=temporary, prefix="encoder-") as folder:
        tuned.encoder.model.save_pretrained(folder, create_model_card=False)
        shelf = VectorShelf(context.store, version, tuned.encoder.encode, tuned.encoder.width)
        hashes = {str(ref): shelf.keep(ref, vector) for ref, vector in described.vectors.items()}
        card = card.model_copy(update={"vectors": hashes})
        stored = store_encoder(context.store, Path(folder), card, context.interrupts.ignore)
        return stored.version
