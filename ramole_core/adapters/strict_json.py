"""JSON from strangers, read strictly.

What passes is UTF-8, names every key once, holds no NaN or Infinity (nor a number as large as that,
1e999), nests within reason, and can be written again as UTF-8 (no lone surrogates).
"""

import json
import math
from typing import Any, Final

from ramole_core.store.base import to_json

# Python's own limit depends on how deep its caller is: one side would take what another refuses.
MAX_DEPTH: Final = 64


class DuplicateKeyError(ValueError):
    """Raised when an object names one key twice: readers disagree on which value counts."""


def parse_strict(data: bytes) -> Any:
    """The parsed value. Raises ValueError with the cause in one line, nothing else."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
        _check_depth(value)
        to_json(value)
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 at byte {e.start}") from e
    except UnicodeEncodeError as e:
        raise ValueError("holds a lone surrogate, which is no character") from e
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, inner in pairs:
        if name in value:
            raise DuplicateKeyError(f"the key {name[:80]!r} stands twice in one object")
        value[name] = inner
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
