"""The gate: which uploads fit this base model. Runs on both sides, without torch.

`check_folder` reads names, sizes, the config and the tensor header, never a tensor; what the
numbers themselves must satisfy is in values.py. Shapes decide whether an adapter fits; another base
name is a warning. The only error is AdapterRefusedError, whose reason is a stable word.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.config import CONFIG_FILE, LoraConfigView, read_config
from ramole_core.adapters.headers import TensorInfo, read_header
from ramole_core.adapters.names import FILES, WEIGHTS_FILE, check_file_name
from ramole_core.adapters.targets import TargetRules
from ramole_core.errors import AdapterRefusedError, printable
from ramole_core.settings import Settings

PREFIX: Final = "base_model.model."
_PARTS: Final = {".lora_A.weight": "A", ".lora_B.weight": "B"}


@dataclass(frozen=True)
class Limits:
    """What this installation accepts at most."""

    max_adapter_bytes: int
    max_adapter_rank: int

    @classmethod
    def from_settings(cls, settings: Settings) -> "Limits":
        """The limits that the settings name."""
        return cls(settings.max_adapter_bytes, settings.max_adapter_rank)


@dataclass(frozen=True)
class CheckedUpload:
    """What the gate found in a folder that it let pass."""

    config: LoraConfigView
    ranks: dict[str, int]  # linear -> R
    dtype: str  # F32, F16, BF16 or "mixed"
    size_bytes: int  # of the weights file
    warnings: tuple[str, ...]


def check_folder(folder: Path, base: BaseInfo, limits: Limits) -> CheckedUpload:
    """Checks the files of an adapter as PEFT saves it. Raises AdapterRefusedError."""
    warnings = _check_files(folder, limits)
    config = read_config(folder / CONFIG_FILE)
    tensors = read_header(folder / WEIGHTS_FILE)
    rules = TargetRules(config)
    ranks = _check_tensors(tensors, rules, base, limits)
    warnings += _doubts(config, rules, ranks, base)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return CheckedUpload(
        config=config,
        ranks=ranks,
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
        size_bytes=(folder / WEIGHTS_FILE).stat().st_size,
        warnings=tuple(warnings),
    )


def _check_files(folder: Path, limits: Limits) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            present = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError as e:
        raise AdapterRefusedError("unreadable", f"{folder}: {e.strerror or e}") from e
    others = [name for name in sorted(present) if not _check_entry(name, present[name].st_mode)]
    for name in FILES:
        if name not in present:
            raise AdapterRefusedError(
                "missing_file", f"{folder}: no {name}; save the adapter with PEFT save_pretrained"
            )
    size_bytes = present[WEIGHTS_FILE].st_size
    if size_bytes > limits.max_adapter_bytes:
        raise AdapterRefusedError(
            "too_large",
            f"{WEIGHTS_FILE}: {size_bytes} bytes are over the limit of "
            f"{limits.max_adapter_bytes} (RAMOLE_MAX_ADAPTER_BYTES)",
        )
    return [f"ignored: {printable(', '.join(others))[:200]}"] if others else []


def _check_entry(name: str, mode: int) -> bool:
    if stat.S_ISLNK(mode):
        raise AdapterRefusedError("symbolic_link", f"{name[:120]!r} is a symbolic link")
    matters = not stat.S_ISDIR(mode) and check_file_name(name)
    if not stat.S_ISREG(mode) and (name in FILES or not stat.S_ISDIR(mode)):
        raise AdapterRefusedError("not_a_regular_file", f"{name[:120]!r} is not a regular file")
    return matters


def _check_tensors(
    tensors: Mapping[str, TensorInfo], rules: TargetRules, base: BaseInfo, limits: Limits
) -> dict[str, int]:
    """The rank of every adapted linear."""
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        target, part = _target_of(name)
        pairs.setdefault(target, {})[part] = tensor
    if not pairs:
        raise AdapterRefusedError("no_tensors", f"{WEIGHTS_FILE} holds no tensor")
    return {
        target: _check_pair(target, pair, rules, base, limits) for target, pair in pairs.items()
    }


def _target_of(name: str) -> tuple[str, str]:
    for suffix, part in _PARTS.items():
        target = name.removeprefix(PREFIX).removesuffix(suffix)
        if name == PREFIX + target + suffix and target:
            return target, part
    raise AdapterRefusedError(
        "unknown_tensor",
        f"tensor {name[:160]!r}: expected {PREFIX}<linear>.lora_A.weight or .lora_B.weight "
        "(embeddings, biases, DoRA and whole modules are not supported)",
    )


def _check_pair(
    target: str,
    pair: Mapping[str, TensorInfo],
    rules: TargetRules,
    base: BaseInfo,
    limits: Limits,
) -> int:
    if target not in base.targets:
        raise AdapterRefusedError(
            "unknown_target",
            f"{target[:160]!r} is not a linear of {base.name}; its linears end in "
            f"{', '.join(_last_parts(base.targets))}",
        )
    for part in "AB":
        if part not in pair:
            raise AdapterRefusedError("missing_tensor", f"{target}: no lora_{part}.weight")
    if not rules.includes(target):
        raise AdapterRefusedError(
            "target_mismatch", f"{target} has tensors, but the config does not name it as a target"
        )
    rank, (d_out, d_in) = rules.rank(target), base.targets[target]
    _check_rank(target, pair, rank, limits)
    for part, wanted in (("A", (rank, d_in)), ("B", (d_out, rank))):
        if pair[part].shape != wanted:
            raise AdapterRefusedError(
                "wrong_shape",
                f"{target}.lora_{part}.weight: shape {list(pair[part].shape)}, "
                f"but {base.name} wants {list(wanted)}",
            )
    return rank


def _check_rank(target: str, pair: Mapping[str, TensorInfo], rank: int, limits: Limits) -> None:
    a, b = pair["A"].shape, pair["B"].shape
    found = a[0] if len(a) == 2 and len(b) == 2 and a[0] == b[1] else rank
    if found != rank:
        raise AdapterRefusedError(
            "rank_mismatch", f"{target}: tensors of rank {found}, but the config says {rank}"
        )
    if rank > limits.max_adapter_rank:
        raise AdapterRefusedError(
            "rank_too_large",
            f"{target}: rank {rank} is over the limit of {limits.max_adapter_rank} "
            "(RAMOLE_MAX_ADAPTER_RANK)",
        )


def _doubts(
    config: LoraConfigView, rules: TargetRules, ranks: Mapping[str, int], base: BaseInfo
) -> list[str]:
    """What is odd but no reason to refuse."""
    doubts = []
    if config.base_name not in (base.name, *base.aliases):
        made_for = (
            "no named base model" if config.base_name is None else repr(config.base_name[:120])
        )
        doubts.append(f"made for {made_for}, this is {base.name!r}")
    bare = sorted(name for name in base.targets if name not in ranks and rules.includes(name))
    if bare:
        doubts.append(f"{len(bare)} targets of the config have no tensors, e.g. {bare[0]}")
    wide = sum(rank > min(base.targets[name]) for name, rank in ranks.items())
    if wide:
        doubts.append(f"{wide} linears have a rank above their own width")
    return doubts


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})
