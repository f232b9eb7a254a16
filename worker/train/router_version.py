"""Router versions as training writes and compares them."""

import hashlib
from typing import Final

from ramole_core import keys
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.mole.card import CARD_FILE, WEIGHTS_FILE
from ramole_core.mole.router import RouterWeights
from worker.routers import StoredRouters
from worker.train.context import TrainContext

DIGEST_CHARS: Final = 8


def version_of(weights: RouterWeights) -> str:
    """`router-<adapters>x<rank>-<digest>`, the digest of everything but the time: the same training
    again gives the same version."""
    card = weights.card
    digest = hashlib.sha256(card.model_dump_json(exclude={"created_at"}).encode())
    digest.update(weights.to_files()[WEIGHTS_FILE])
    return f"router-{len(card.adapters)}x{card.rank}-{digest.hexdigest()[:DIGEST_CHARS]}"


def store_router(context: TrainContext, weights: RouterWeights) -> str:
    """Writes a version, weights first and the card last, and returns its name. Until the card is
    there nothing has changed; from then on the run cannot be interrupted."""
    version = version_of(weights)
    files = weights.to_files()
    prefix = keys.router(version)
    if not context.store.exists(prefix + CARD_FILE):
        context.store.put(prefix + WEIGHTS_FILE, files[WEIGHTS_FILE])
    context.interrupts.ignore()
    context.store.create(prefix + CARD_FILE, files[CARD_FILE])
    return version


def serving_router(context: TrainContext) -> RouterWeights | None:
    """The router in use, to compare with. Raises InvalidInputError when there is no comparison."""
    version = context.activations.active().router
    if version is None:
        return None
    try:
        weights = StoredRouters(context.store).load_router(version)
        weights.card.check_base(context.base.fingerprint)
        weights.check_fits(context.base.targets)
    except (NotFoundError, InvalidInputError) as e:
        raise InvalidInputError(
            f"the router in use, {version}, cannot be compared with: {e}; put another one in use "
            "(`ramole routers use none`), or add --activate always"
        ) from e
    return weights
