"""A pool of adapters on disk: as many references as wanted over a few distinct files.

Every load reads and converts its file as the worker's cache does; the operating system may answer
from its page cache. Many references share a file, which nobody can tell from the outside.
"""

import json
from pathlib import Path
from typing import Final

from safetensors.torch import save_file

from benchmarks.engine.model import Targets, random_adapter
from ramole_core.adapters.config import CONFIG_FILE
from ramole_core.adapters.gate import PREFIX
from ramole_core.adapters.loading import load_lora
from ramole_core.adapters.names import WEIGHTS_FILE
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights

SIDES: Final = {"a": "lora_A", "b": "lora_B"}


class DiskPool:
    """An AdapterSource. `num_loads` counts the reads."""

    def __init__(self, folder: Path, targets: Targets, rank: int, num_files: int) -> None:
        self.num_loads = 0
        self._folders = [folder / str(place) for place in range(num_files)]
        for place, path in enumerate(self._folders):
            write_adapter(path, random_adapter(targets, rank, place), rank)

    def load(self, ref: AdapterRef) -> LoraWeights:
        """See AdapterSource."""
        self.num_loads += 1
        place = int(ref.name.removeprefix("a"))
        return load_lora(self._folders[place % len(self._folders)])


def write_adapter(folder: Path, lora: LoraWeights, rank: int) -> None:
    """The two files of an adapter as PEFT writes them, its scaling 1."""
    folder.mkdir(parents=True)
    tensors = {
        f"{PREFIX}{target}.{name}.weight": getattr(pair, side).contiguous()
        for target, pair in lora.pairs.items()
        for side, name in SIDES.items()
    }
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(lora.pairs),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config))
