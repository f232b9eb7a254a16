"""What the store knows of its base model: enough to check an upload without loading a model."""

import hashlib

from pydantic import Field

from ramole_core.jobs import Wire
from ramole_core.store.base import to_json


class BaseInfo(Wire):
    """`base.json`, written by the first worker. One store serves one base model."""

    name: str
    aliases: tuple[str, ...] = Field(default=(), strict=False)
    targets: dict[str, tuple[int, int]] = Field(strict=False)  # linear -> (D_out, D_in)
    context_tokens: int

    @property
    def fingerprint(self) -> str:
        """Changes when the name or any shape does; job manifests pin it."""
        shapes = {name: list(shape) for name, shape in self.targets.items()}
        return hashlib.sha256(to_json([self.name, shapes, self.context_tokens])).hexdigest()[:16]
