"""Encoder and router versions from the producer's side: list, use, roll back.

Needs the store alone. What is in use is a log there (ramole_core.activations); jobs pin it at
submission, so a switch changes later jobs only. Workers follow within seconds.
"""

from pydantic import ValidationError

from producer.pins import read_active, read_base
from ramole_core import keys
from ramole_core.activations import Activations, Active
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.jobs import Wire, checked_name
from ramole_core.mole.card import CARD_FILE, RouterCard
from ramole_core.retrieval.card import EncoderCard, encoder_cards, read_encoder_card
from ramole_core.store import ObjectStore


class EncoderRow(Wire):
    """One encoder version. `card` is null for the version that RAMOLE_ENCODER gave."""

    version: str
    in_use: bool
    card: EncoderCard | None


class RouterRow(Wire):
    """One router version."""

    version: str
    in_use: bool
    card: RouterCard


class Versions:
    """The versions of one store. Every method raises UnavailableError before the first worker."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._log = Activations(store)

    def encoders(self) -> list[EncoderRow]:
        """All encoder versions: RAMOLE_ENCODER's, then the trained ones, oldest first."""
        in_use = read_active(self._store).encoder
        cards: dict[str, EncoderCard | None] = {c.version: c for c in encoder_cards(self._store)}
        others: dict[str, EncoderCard | None] = {
            version: None for version in (self._log.first_encoder(), in_use) if version not in cards
        }
        return [
            EncoderRow(version=version, in_use=version == in_use, card=card)
            for version, card in (others | cards).items()
        ]

    def use_encoder(self, version: str) -> Active:
        """Puts a version in use. Raises NotFoundError, InvalidInputError for a damaged card."""
        read_active(self._store)
        if version != self._log.first_encoder():
            try:
                read_encoder_card(self._store, version)
            except NotFoundError as e:
                known = [row.version for row in self.encoders()]
                raise _unknown("encoder", version, known) from e
        return self._log.use("encoder", version)

    def rollback_encoder(self) -> Active:
        """Goes back to the version before. Raises InvalidInputError when there is none."""
        read_active(self._store)
        return self._log.rollback("encoder")

    def routers(self) -> list[RouterRow]:
        """All router versions, oldest first; one that is damaged is left out."""
        in_use = read_active(self._store).router
        found = []
        for version in self._store.children(keys.ROUTERS):
            try:
                card = read_router_card(self._store, version)
            except (NotFoundError, InvalidInputError):
                continue
            found.append(RouterRow(version=version, in_use=version == in_use, card=card))
        return sorted(found, key=lambda row: row.card.created_at)

    def use_router(self, version: str | None) -> Active:
        """Puts a version in use, or none.

        Raises NotFoundError, InvalidInputError when it was trained for another base model.
        """
        base = read_base(self._store)
        if version is not None:
            try:
                card = read_router_card(self._store, version)
            except NotFoundError as e:
                known = [row.version for row in self.routers()]
                raise _unknown("router", version, known) from e
            card.check_base(base.fingerprint)
        return self._log.use("router", version)

    def rollback_router(self) -> Active:
        """Goes back to the version before, or to none. Raises InvalidInputError."""
        read_active(self._store)
        return self._log.rollback("router")


def read_router_card(store: ObjectStore, version: str) -> RouterCard:
    """The card of a router version. Raises NotFoundError; InvalidInputError when it is damaged."""
    key = keys.router(checked_name("router", version)) + CARD_FILE
    try:
        return RouterCard.model_validate_json(store.get(key))
    except ValidationError as e:
        problem = e.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InvalidInputError(f"{key} is not readable: {place}: {problem['msg']}") from e


def _unknown(kind: str, version: str, known: list[str]) -> NotFoundError:
    there = f"there is: {', '.join(known)}" if known else "there is none"
    return NotFoundError(f"no {kind} {version!r} in the store; {there}")
