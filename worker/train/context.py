"""What every training run stands on: the store, what it holds, and the way to speak."""

from dataclasses import dataclass

from ramole_core import keys
from ramole_core.activations import Activations
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.registry import Registry
from ramole_core.errors import NotFoundError, UnavailableError
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore, open_store
from worker.train.interrupts import Interrupts
from worker.train.progress import Progress


@dataclass(frozen=True)
class TrainContext:
    """Opened once per run; needs no Redis. `base` is the store's base model."""

    settings: Settings
    store: ObjectStore
    base: BaseInfo
    registry: Registry  # as it stands at the start
    activations: Activations
    progress: Progress
    interrupts: Interrupts

    @classmethod
    def open(cls, settings: Settings, progress: Progress, interrupts: Interrupts) -> "TrainContext":
        """Raises StoreUnavailableError, and UnavailableError for a store without a base model."""
        store = open_store(settings)
        store.check()
        try:
            base = BaseInfo.model_validate_json(store.get(keys.BASE))
        except NotFoundError as e:
            raise UnavailableError(
                "no worker has started on this store yet, so it has no adapters to train with; "
                "start one with `ramole up` or `python -m worker`"
            ) from e
        registry = Registry(store)
        registry.refresh()
        return cls(settings, store, base, registry, Activations(store), progress, interrupts)
