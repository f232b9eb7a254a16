"""What every benchmark prints and writes: rows with targets, the machine, the settings."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

_PACKAGES: Final = ("torch", "transformers", "peft", "celery", "redis", "faiss-cpu", "ramole")


@dataclass(frozen=True)
class Row:
    """One measured number. `target` is None where nothing is promised."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def report(
    rows: Sequence[Row],
    settings: dict[str, Any],
    json_path: Path | None,
    details: Sequence[Row] = (),
) -> None:
    """Prints the table; writes `{"rows", "machine", "settings"}` when a path is given, `details`
    among its rows: they are too many to read."""
    sys.stdout.write(table(rows))
    if json_path is not None:
        content = {
            "rows": [asdict(row) for row in (*rows, *details)],
            "machine": machine(),
            "settings": settings,
        }
        json_path.write_text(json.dumps(content, indent=2) + "\n")


def table(rows: Sequence[Row]) -> str:
    """Aligned columns: name, value, unit, target, verdict."""
    lines = [("row", "value", "unit", "target", "")]
    for row in rows:
        sign = "≥" if row.better == "higher" else "≤"
        target = "" if row.target is None else f"{sign} {row.target:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        lines.append((row.name, f"{row.value:.3f}", row.unit, target, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def machine() -> dict[str, Any]:
    """What a reader needs to compare numbers."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpu": _gpu(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
