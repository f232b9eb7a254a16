"""The sample prompts that a retriever learns from: those of the registry, or of a file."""

from collections.abc import Collection
from pathlib import Path

from ramole_core.adapters.samples import check_samples, parse_samples
from ramole_core.errors import AdapterRefusedError, InvalidInputError, NotFoundError
from ramole_core.retrieval.tuning import Samples
from ramole_core.retrieval.vectors import samples_key
from ramole_core.training import AdapterSamples
from worker.train.context import TrainContext
from worker.train.records import bad_line, read_records


def registered_samples(context: TrainContext, exclude: Collection[str]) -> Samples:
    """Adapter -> its samples, of every active adapter. Raises InvalidInputError."""
    refs = context.registry.active()
    _check_known(exclude, refs)
    found = {}
    for name, ref in sorted(refs.items()):
        if name in exclude:
            continue
        try:
            found[name] = parse_samples(context.store.get(samples_key(ref)))
        except (NotFoundError, AdapterRefusedError) as e:
            raise InvalidInputError(
                f"the samples of adapter {ref} cannot be read: {e}; leave it out with "
                f"--exclude {name}, or upload it again"
            ) from e
    return found


def read_sample_sets(path: Path, exclude: Collection[str]) -> Samples:
    """Adapter -> its samples, from JSON lines of AdapterSamples; the adapters need not be
    registered. Raises InvalidInputError for the first bad line, with its number."""
    found: dict[str, list[str]] = {}
    for number, record in read_records(path, AdapterSamples):
        if record.adapter in found:
            raise bad_line(number, f"adapter {record.adapter!r} stands there before")
        try:
            found[record.adapter] = check_samples(record.samples)
        except AdapterRefusedError as e:
            raise bad_line(number, str(e)) from e
    _check_known(exclude, found)
    return {name: texts for name, texts in found.items() if name not in exclude}


def _check_known(exclude: Collection[str], known: Collection[str]) -> None:
    for name in exclude:
        if name not in known:
            raise InvalidInputError(f"--exclude: no adapter {name!r} among the {len(known)}")
