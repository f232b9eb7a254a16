"""A store with some adapters of the zoo, made without a worker; and a file to train a router."""

import json
from pathlib import Path
from typing import Any

from ramole_core import keys, zoo
from ramole_core.adapters.gate import Limits
from ramole_core.adapters.reception import receive
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.samples import read_samples
from ramole_core.adapters.staging import stage_upload
from ramole_core.engine.model import load_base
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore

_ALL = zoo.adapter_names()
NAMES = (_ALL[0], _ALL[len(_ALL) // 2], _ALL[-1])
NUM_RECORDS = 10  # of an adapter


def make_zoo_store(home: Path) -> DirectoryStore:
    """The store under `home`, with the base model and the adapters NAMES."""
    store = DirectoryStore.from_location(str(home / "store"))
    base = load_base(Settings(home=home)).base_info()
    store.put(keys.BASE, base.model_dump_json().encode())
    limits = Limits.from_settings(Settings(home=home))
    for name in NAMES:
        samples = read_samples(zoo.samples_path(name))
        stage_upload(store, zoo.adapter_path(name), samples, name, "tests", f"u-{name}")
        registry = Registry(store)
        receive(f"u-{name}", store, registry, base, limits, lambda *_: None, home / "tmp")
    return store


def records(names: tuple[str, ...] = NAMES) -> list[dict[str, Any]]:
    """Some development records of each of these adapters."""
    lines = [json.loads(line) for line in zoo.dev_path().read_text().splitlines()]
    own = {name: [line for line in lines if line["adapter"] == name] for name in names}
    return [record for name in names for record in own[name][:NUM_RECORDS]]


def one_sided_records() -> list[dict[str, Any]]:
    """The first adapter's records under all names in turn: one adapter is right, always, and a few
    steps of training find out which."""
    lines = [json.loads(line) for line in zoo.dev_path().read_text().splitlines()]
    own = [line for line in lines if line["adapter"] == NAMES[0]]
    return [{**line, "adapter": NAMES[i % len(NAMES)]} for i, line in enumerate(own)]


def write_records(path: Path, found: list[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path


def contents(store: DirectoryStore) -> dict[str, bytes]:
    """Every object."""
    return {entry.key: store.get(entry.key) for entry in store.entries("")}
