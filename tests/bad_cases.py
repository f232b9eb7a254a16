"""How a good adapter is spoilt: every case registers itself in BAD with its reason."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.adapters_corpus import WEIGHTS, edit_config

Spoil = Callable[[Path], None]
BAD: dict[str, tuple[str, Spoil]] = {}


def bad(name: str, reason: str) -> Callable[[Spoil], Spoil]:
    def keep(spoil: Spoil) -> Spoil:
        BAD[name] = (reason, spoil)
        return spoil

    return keep


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrites the weights file after `edit` changed its tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_header(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the header only; `edit` changes the table, or returns the new header's text."""
    data = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + size])
    text = edit(table)
    header = (text if isinstance(text, str) else json.dumps(table)).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def config_case(name: str, reason: str, **values: Any) -> None:
    BAD[name] = (reason, lambda folder: edit_config(folder, **values))


def tensor_case(name: str, reason: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    BAD[name] = (reason, lambda folder: edit_tensors(folder, edit))


def header_case(name: str, reason: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    BAD[name] = (reason, lambda folder: edit_header(folder, edit))


def first(table: dict[str, Any]) -> dict[str, Any]:
    return table[first_name(table)]


def first_name(table: dict[str, Any]) -> str:
    return min(name for name in table if name.endswith("lora_A.weight"))


def b_name(table: dict[str, Any]) -> str:
    return first_name(table).replace("lora_A", "lora_B")
