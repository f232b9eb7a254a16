"""What must be installed before a worker can be started here."""

from importlib.util import find_spec
from typing import Final

_NEEDED: Final = ("worker", "torch", "transformers")


def worker_is_installed() -> bool:
    """True when the worker and what it stands on can be imported (nothing is imported here)."""
    return all(find_spec(name) is not None for name in _NEEDED)
