"""One base model on one device in one number format, and everything that is built around it.

All engines and peers share its weights; only merging needs a copy.
"""

import copy
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from benchmarks.engine.meter import Meter
from benchmarks.engine.model import Adapters, Routers, random_llama, twin, word_tokenizer
from benchmarks.engine.published import one_segment, publish
from benchmarks.engine.sizes import BATCH, Shape
from ramole_core.engine.engine import Engine
from ramole_core.engine.model import LoadedBase, describe_base
from ramole_core.engine.scheduler import Scheduler
from ramole_core.mole.attach import MoleModel, attach
from ramole_core.mole.bank import AdapterBank, AdapterSource
from ramole_core.settings import Settings


@dataclass(frozen=True)
class World:
    """See the module's docstring. `model` is never changed."""

    shape: Shape
    device: torch.device
    dtype: torch.dtype
    model: Any

    @classmethod
    def build(cls, shape: Shape, device: str, dtype: str) -> "World":
        """Random weights, the same for every number format but for rounding."""
        place, format_ = torch.device(device), getattr(torch, dtype)
        return cls(shape, place, format_, random_llama(shape, place, format_))

    @cached_property
    def targets(self) -> dict[str, tuple[int, int]]:
        """Target linear -> (D_out, D_in)."""
        return self._described(self.model).targets

    @cached_property
    def adapters(self) -> Adapters:
        """Of as many places as the shape says."""
        return Adapters(self.targets, self.shape.adapters, self.shape.rank)

    @cached_property
    def routers(self) -> Routers:
        """The one router."""
        return Routers(self.targets, self.shape.router_rank)

    def plain(self) -> Any:
        """The base model for a peer that wraps or runs it: own modules, the same weights."""
        return twin(self.model)

    def private(self) -> Any:
        """The base model for a peer that changes its weights."""
        return copy.deepcopy(self.model)

    def engine(self, source: AdapterSource | None = None, **policy: Any) -> tuple[Engine, Meter]:
        """A new engine over an attached twin; `source` holds other adapters than `adapters`,
        `policy` are options of its scheduler."""
        model = twin(self.model)
        base = self._described(model)
        mole = attach(model)
        return self._built(base, mole, source or self.adapters, policy), Meter(mole)

    def published_engine(self) -> tuple[Engine, Meter]:
        """A new engine whose layers compute the published formula."""
        model = twin(self.model)
        base = self._described(model)
        mole = attach(model)
        publish(mole, self.routers.router)
        engine = self._built(base, mole, self.adapters, {})
        engine.runner._builder._partition = one_segment()
        return engine, Meter(mole)

    def clock(self) -> float:
        """Seconds once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _described(self, model: Any) -> LoadedBase:
        return describe_base(model, word_tokenizer(self.shape.vocabulary), "random")

    def _built(
        self, base: LoadedBase, mole: MoleModel, source: AdapterSource, policy: dict[str, Any]
    ) -> Engine:
        """The one place that knows how an engine is put together."""
        settings = Settings(
            batch_size=BATCH,
            max_batch_tokens=BATCH * self.shape.context_tokens,
            bank_size=self.shape.bank,
            batch_interval_seconds=0.0,
        )
        bank = AdapterBank(
            base.targets,
            settings.bank_size,
            source,
            base.device,
            base.dtype,
            mole.groups,
            self.routers,
        )
        engine = Engine(base, mole, bank, settings)
        if policy:
            limits = (settings.batch_size, settings.max_batch_tokens, settings.bank_size, 0.0)
            engine._scheduler = Scheduler(*limits, **policy)
        return engine
