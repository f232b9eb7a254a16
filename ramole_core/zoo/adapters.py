"""The LoRA of each task: its shape, its training and how it is saved.

Shapes differ on purpose, so that whoever mixes adapters meets ranks 4 to 16, attention-only and
all-linear targets, a regular expression, rank and alpha patterns and rsLoRA.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from ramole_core.zoo.tasks import TASKS, Task, train_example
from ramole_core.zoo.training import Recipe, train

BASE_NAME = "ramole-zoo"

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_ALL_LINEAR = [*_ATTENTION, "gate_proj", "up_proj", "down_proj"]

# By the task's place in its family; _SPECIAL comes on top.
_SHAPES: tuple[dict[str, Any], ...] = (
    {"r": 8, "lora_alpha": 16, "target_modules": _ALL_LINEAR},
    {"r": 12, "lora_alpha": 24, "target_modules": _ATTENTION},
    {"r": 4, "lora_alpha": 8, "target_modules": _ALL_LINEAR},
    {"r": 8, "lora_alpha": 16, "target_modules": _ATTENTION},
    {"r": 5, "lora_alpha": 10, "target_modules": _ALL_LINEAR},
)
_SPECIAL: dict[str, dict[str, Any]] = {
    "upper-label": {"r": 16, "lora_alpha": 8, "use_rslora": True},
    "twice-echo": {"target_modules": r".*\.layers\.[0-3]\.(self_attn|mlp)\.(q|v|up|down)_proj"},
    "spell-poster": {"rank_pattern": {"down_proj": 16, "q_proj": 4}},
    "count-form": {"alpha_pattern": {"v_proj": 12}, "rank_pattern": {"v_proj": 6}},
}


def lora_config(task: Task) -> LoraConfig:
    """Return the LoRA shape of `task`: scaling 2, except where a rank pattern says otherwise."""
    place = [other.name for other in TASKS if other.family == task.family].index(task.name)
    shape = _SHAPES[place] | _SPECIAL.get(task.name, {})
    return LoraConfig(task_type="CAUSAL_LM", **shape)


def train_adapter(base: LlamaForCausalLM, task: Task, recipe: Recipe, seed: int) -> PeftModel:
    """Return a copy of `base` with the trained adapter of `task`; `base` stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(copy.deepcopy(base), lora_config(task))
        train(model, lambda rng: train_example(task, rng), recipe, seed)
    return model


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter to `folder` by PEFT, in bfloat16: the two files of an upload and nothing
    else.

    The configuration names the base `ramole-zoo`, whatever path it was loaded from, and is sorted,
    because PEFT keeps target modules in a set, whose order differs between runs.
    """
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.to(torch.bfloat16)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
