"""What is known of a router version: `routers/<version>/router.json`. Needs no torch."""

from typing import Final

from pydantic import Field

from ramole_core.errors import InvalidInputError
from ramole_core.jobs import Wire

WEIGHTS_FILE: Final = "router.safetensors"
CARD_FILE: Final = "router.json"


class RouterCard(Wire):
    """Written after the weights: a router without its card does not exist.

    Losses are cross-entropy per target token on the held-out examples, with all their candidates
    and no dropout; `before` is without a router.
    """

    base: str  # fingerprint of base.json
    rank: int = Field(ge=1)
    adapters: tuple[str, ...] = Field(strict=False)  # NAME@VERSION, what it was trained with
    seed: int
    encoder: str | None  # whose similarities made the prior
    prior: bool
    candidates: int | None  # adapters of one example, its own and others drawn; null: all
    dropout: float
    steps: int  # training steps that the kept weights have seen
    held_out_before: float | None
    held_out_after: float | None
    created_at: str

    def check_base(self, fingerprint: str) -> None:
        """Raises InvalidInputError when the router was trained for another base model."""
        if self.base != fingerprint:
            raise InvalidInputError(
                f"the router was trained for another base model (fingerprint {self.base!r}, this "
                f"one has {fingerprint!r})"
            )
