"""The name of one immutable adapter version."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class AdapterRef:
    """What answers, indexes, banks and caches name."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"
