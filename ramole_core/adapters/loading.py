"""From an adapter's files to LoraWeights. Needs torch.

Trusts that the gate let the folder pass; reads safetensors only, never a pickle.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ramole_core.adapters.config import CONFIG_FILE, read_config
from ramole_core.adapters.gate import PREFIX
from ramole_core.adapters.names import WEIGHTS_FILE
from ramole_core.adapters.targets import TargetRules
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.errors import AdapterRefusedError

_A, _B = ".lora_A.weight", ".lora_B.weight"


def load_lora(folder: Path) -> LoraWeights:
    """The adapter in float32 on the CPU, delta W = b @ a. Raises AdapterRefusedError."""
    rules = TargetRules(read_config(folder / CONFIG_FILE))
    try:
        tensors = load_file(folder / WEIGHTS_FILE, device="cpu")
        targets = [name.removeprefix(PREFIX)[: -len(_A)] for name in tensors if name.endswith(_A)]
        return LoraWeights({target: _pair(tensors, target, rules) for target in targets})
    except (SafetensorError, OSError, KeyError) as e:
        raise AdapterRefusedError("unreadable", f"{WEIGHTS_FILE}: {str(e)[:200]}") from e


def _pair(tensors: dict[str, torch.Tensor], target: str, rules: TargetRules) -> LoraPair:
    a = tensors[PREFIX + target + _A]  # (R, D_in)
    b = tensors[PREFIX + target + _B]  # (D_out, R)
    # Copies: load_file maps the file, and a cache may prune it while the weights are in use.
    return LoraPair(a.to(torch.float32, copy=True), b.to(torch.float32) * rules.scaling(target))
