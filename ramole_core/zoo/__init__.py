"""The zoo: a small base model and 40 LoRA adapters as package data, for the demo, tests and
benchmarks.

Importing it needs neither torch nor transformers: the functions return paths. `python -m
ramole_core.zoo build` makes the data again, `check` measures it.
"""

from pathlib import Path

_DATA = Path(__file__).parent / "data"


def data_path() -> Path:
    """Return the folder of the shipped data."""
    return _DATA


def base_path() -> Path:
    """Return the base model's folder, for `AutoModelForCausalLM` and `AutoTokenizer`."""
    return _DATA / "base"


def adapter_names() -> list[str]:
    """Return the names of the adapters, sorted."""
    return sorted(folder.name for folder in (_DATA / "adapters").iterdir())


def adapter_path(name: str) -> Path:
    """Return the folder to upload: `adapter_config.json` and `adapter_model.safetensors`, nothing
    else.

    Raises:
        KeyError: the zoo has no adapter `name`.
    """
    return _DATA / "adapters" / _known(name)


def samples_path(name: str) -> Path:
    """Return the file of 20 sample prompts of an adapter, one JSON string per line.

    Raises:
        KeyError: the zoo has no adapter `name`.
    """
    return _DATA / "samples" / f"{_known(name)}.jsonl"


def test_path() -> Path:
    """Return the test file: words and, in half of the records, wordings that no training saw."""
    return _DATA / "test.jsonl"


def dev_path() -> Path:
    """Return the development file: like the test file, with other words, to choose settings."""
    return _DATA / "dev.jsonl"


def _known(name: str) -> str:
    if name not in adapter_names():
        raise KeyError(f"the zoo has no adapter {name!r}; it has {', '.join(adapter_names())}")
    return name
