"""The routers that lie on the device, by version.

A router stays for as long as somebody holds it, and the last few stay in any case: routers in
alternate use are read once. Not thread-safe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import torch

from ramole_core.errors import NotFoundError
from ramole_core.mole.packed import Pairs
from ramole_core.mole.router import RouterSource

MAX_SPARE: Final = 2  # routers that stay although nobody holds them


@dataclass(frozen=True, eq=False)
class Router:
    """A router on the device, in the model's dtype."""

    version: str
    pairs: Pairs


class RouterShelf:
    """See the module's docstring. `targets` are the base model's linears -> (D_out, D_in)."""

    def __init__(
        self,
        source: RouterSource | None,
        targets: Mapping[str, tuple[int, int]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._source = source
        self._targets = targets
        self._device = device
        self._dtype = dtype
        self._known: WeakValueDictionary[str, Router] = WeakValueDictionary()
        self._spare: dict[str, Router] = {}  # least recently used first

    def get(self, version: str) -> Router:
        """Raises what the source raises, and InvalidInputError when the router does not fit the
        base model; nothing has changed then."""
        router = self._known.get(version) or self._load(version)
        self._known[version] = router
        self._spare.pop(version, None)
        self._spare[version] = router
        while len(self._spare) > MAX_SPARE:
            del self._spare[next(iter(self._spare))]
        return router

    def free_unused(self) -> None:
        """Gives up the routers that nobody holds."""
        self._spare.clear()

    def _load(self, version: str) -> Router:
        if self._source is None:
            raise NotFoundError(f"router {version}: this bank was made without a source of routers")
        weights = self._source.load_router(version)
        weights.check_fits(self._targets)
        pairs = {target: (self._on(a), self._on(b)) for target, (a, b) in weights.pairs.items()}
        return Router(version, pairs)

    def _on(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self._device, dtype=self._dtype)
