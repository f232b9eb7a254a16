"""What a job's answers depend on, read from the store at submission."""

from ramole_core import keys
from ramole_core.activations import Activations, Active
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import InvalidInputError, NotFoundError, UnavailableError
from ramole_core.jobs import JobOptions, Pins
from ramole_core.store import ObjectStore


def read_base(store: ObjectStore) -> BaseInfo:
    """The store's base model. Raises UnavailableError when no worker has written it yet."""
    try:
        return BaseInfo.model_validate_json(store.get(keys.BASE))
    except NotFoundError as e:
        raise _not_started() from e


def read_active(store: ObjectStore) -> Active:
    """The versions in use. Raises UnavailableError when no worker has started yet."""
    active = Activations(store).active()
    if not active.encoder:
        raise _not_started()
    return active


def current_pins(store: ObjectStore, options: JobOptions) -> Pins:
    """The pins of a job submitted now. Raises InvalidInputError when `options` ask for more."""
    base = read_base(store)
    active = read_active(store)
    if options.gate == "mole-plain" and active.router is None:
        raise InvalidInputError(
            "gate 'mole-plain' needs a trained router and none is active; "
            "use --gate mole, which works without one"
        )
    registry = read_registry(store)
    for name in options.allow_adapters or ():
        known_adapter(registry, name)
    chosen = [known_adapter(registry, c.name, c.version) for c in options.adapters or ()]
    twice = next((ref for ref in chosen if chosen.count(ref) > 1), None)
    if twice is not None:
        raise InvalidInputError(f"--adapter: {twice} is given twice")
    return Pins(
        base=base.fingerprint,
        encoder=active.encoder,
        router=active.router,
        registry=registry.position,
    )


def read_registry(store: ObjectStore) -> Registry:
    """The registry as it stands now."""
    registry = Registry(store)
    registry.refresh()
    return registry


def known_adapter(registry: Registry, name: str, version: int | None = None) -> AdapterRef:
    """The adapter that is meant. Raises InvalidInputError when there is none."""
    try:
        return registry.resolve(name, version)
    except NotFoundError as e:
        raise InvalidInputError(f"{e}; `ramole adapters list` shows what there is") from e


def _not_started() -> UnavailableError:
    return UnavailableError(
        "no worker has started on this store yet; start one with `ramole up` or `python -m worker`"
    )
