"""What is known of a trained encoder version: `encoders/<version>/encoder.json`. Needs no torch."""

import logging
import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, ValidationError

from ramole_core import keys
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.jobs import Name, Wire, checked_name
from ramole_core.store.base import ObjectStore

logger = logging.getLogger(__name__)

Number = Annotated[float, Field(allow_inf_nan=False)]
MAX_FILES: Final = 64
_PATH: Final = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/){0,4}[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
)
_SUFFIXES: Final = (".json", ".txt", ".model", ".md", ".safetensors")


class EncoderScores(Wire):
    """Leave-one-out retrieval of sample prompts, per cent of them whose own adapter is among the
    first 1, 3, 5, 8; each sample against its own adapter's vector without itself."""

    num_prompts: int
    top1: Number
    top3: Number
    top5: Number
    top8: Number

    @property
    def overall(self) -> float:
        """The mean of the four: what one encoder is compared with another by."""
        return round((self.top1 + self.top3 + self.top5 + self.top8) / 4, 2)


def checked_model_file(path: str) -> str:
    """Returns `path` (below `model/`) when a stored model may have such a file.

    Relative, without hidden parts, and nothing that holds code: no *.py, no pickle. Raises
    InvalidInputError.
    """
    if not _PATH.fullmatch(path) or not path.endswith(_SUFFIXES):
        raise InvalidInputError(
            f"encoder file {path[:120]!r}: use relative names that end with {', '.join(_SUFFIXES)}"
        )
    return path


def _wire_file(path: str) -> str:
    try:
        return checked_model_file(path)
    except InvalidInputError as e:
        raise ValueError(str(e)) from e


class ConfidenceScale(Wire):
    """How sure adapters are of their answers (mean log-probability of a token, at most 0): what
    gate `cascade` needs to tell an unsure one.

    99 % of the adapters' answers to their own samples are at least as sure as `floor`; `spread` is
    the standard deviation over their answers to all samples they were tried on.
    """

    floor: Number
    spread: Number = Field(ge=0.0)


class EncoderCard(Wire):
    """Written after the model's files: an encoder without its card does not exist.

    `tau` is the temperature of the retrieval prior over this encoder's similarities; training
    writes the default of mole/gates.py.
    `floor` is the similarity that 99 % of the held-out samples reach with their own adapter: a
    start for `min_similarity`. It and the scores are of adapters described by their samples
    alone; what other adapters answer (`neighbours`) comes on top.
    """

    version: Name
    trained_from: str
    prefix: str
    max_tokens: int = Field(ge=8)
    tau: Number = Field(gt=0.0)
    floor: Number
    adapters: tuple[str, ...] = Field(strict=False)  # whose samples gave gradients
    fraction: Number
    seed: int
    steps: int
    neighbours: int = 0  # adapters tried on another's samples, see affinity.py; 0: none
    confidence: ConfidenceScale | None = None  # of these trials; null: there were none
    held_out_before: EncoderScores | None
    held_out_after: EncoderScores | None
    # path below model/ -> SHA-256
    files: dict[Annotated[str, AfterValidator(_wire_file)], str] = Field(max_length=MAX_FILES)
    vectors: dict[str, str] = Field(default_factory=dict)  # NAME@VERSION -> SHA-256, as trained
    created_at: str


def read_encoder_card(store: ObjectStore, version: str) -> EncoderCard:
    """The card of a version. Raises NotFoundError; InvalidInputError when it is damaged."""
    key = keys.encoder_card(checked_name("encoder", version))
    try:
        card = EncoderCard.model_validate_json(store.get(key))
    except ValidationError as e:
        problem = e.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InvalidInputError(f"{key} is not readable: {place}: {problem['msg']}") from e
    if card.version != version:
        raise InvalidInputError(f"{key} is the card of {card.version!r}")
    return card


def encoder_cards(store: ObjectStore) -> list[EncoderCard]:
    """The cards of all stored versions, oldest first; one that is damaged is left out."""
    found = []
    for version in store.children(keys.ENCODERS):
        try:
            found.append(read_encoder_card(store, version))
        except NotFoundError:  # vectors of an encoder that is not in the store, or a cut upload
            continue
        except InvalidInputError as e:
            logger.warning("left out: %s", e)
    return sorted(found, key=lambda card: card.created_at)
