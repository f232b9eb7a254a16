"""How many bytes this process may still take on a device.

On a CPU the smallest of what the machine has available and what each control group around the
process leaves (cgroup v1 and v2: containers, services), less the weight files that are mapped:
their pages count as reclaimable, but a model that loses them reads them again at every step. What
other processes take later is not foreseen. Where there is no /proc (not Linux): all of the memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import torch

# Folder below /sys/fs/cgroup, files with limits, file with the usage, reclaimable part of it.
V2: Final = ("", ("memory.max", "memory.high"), "memory.current", "inactive_file")
V1: Final = ("memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that are free on `device`; `root` is where `proc` and `sys` lie."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps what it has freed for itself
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = min([_machine_bytes(root), *_group_bytes(root)])
    return max(0, free - _mapped_bytes(root))


def _machine_bytes(root: Path) -> int:
    numbers = _fields(root / "proc/meminfo")
    if "MemAvailable:" in numbers:
        return numbers["MemAvailable:"] * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_bytes(root: Path) -> Iterator[int]:
    """What every control group with a limit has left, the process's own and those around it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, limits, usage, reclaimable = V1 if controllers else V2
        top = root / "sys/fs/cgroup" / folder
        for group in _groups(top, path):
            left = [n for name in limits if (n := _number(group / name)) is not None]
            used = _number(group / usage)
            if left and used is not None:
                again = _fields(group / "memory.stat").get(reclaimable, 0)
                yield min(left) - used + again


def _groups(top: Path, path: str) -> list[Path]:
    """`top` and the folders on the way to `path`. In a container `top` is its own group, and the
    path may be the host's, which cannot be seen: those folders do not exist."""
    parts = PurePosixPath(path).parts[1:]
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _mapped_bytes(root: Path) -> int:
    """Size of the weight files in this process's address space; each counts once."""
    sizes: dict[str, int] = {}
    for line in _lines(root / "proc/self/maps"):
        if line.endswith(".safetensors"):
            begin, end = (int(place, 16) for place in line.split()[0].split("-"))
            path = line.split(maxsplit=5)[5]
            sizes[path] = max(sizes.get(path, 0), end - begin)
    return sum(sizes.values())


def _lines(path: Path) -> list[str]:
    """Of a file of the kernel; none when there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _fields(path: Path) -> dict[str, int]:
    """`name number` on each line."""
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    """The number in a file; None when it says `max` or cannot be read."""
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None
