"""Good adapters for any Llama-like model, made and saved by PEFT, and how they are staged.

`make_good(folder, kind, model)` saves an adapter as PEFT does. `stage_raw` puts a folder into
staging past every check. The model is never changed. The bad ones: tests/bad_adapters.py.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from ramole_core import keys
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.store.base import ObjectStore

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
GOOD_SAMPLES = ["Translate to French: hello", "Traduis « fromage »", "line\nbreak \u2028 {}"]

_GOOD: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "one_linear": {"target_modules": ["down_proj"]},
    "nested_suffix": {"target_modules": ["self_attn.q_proj", "mlp.up_proj"]},
    "full_name": {"target_modules": ["model.layers.1.self_attn.k_proj"]},
    "all_linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.layers\.\d+\.(self_attn\.[qk]_proj|mlp\.(up|down)_proj)"},
    "regex_anchored": {"target_modules": r"^model\.layers\.[01]\.mlp\.\w+?_proj$"},
    "exclude_list": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "k_proj"]},
    "exclude_regex": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.0\..*"},
    "one_layer": {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": 1},
    "layer_list": {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]},
    "layers_pattern": {
        "target_modules": ["v_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "rank_1": {"target_modules": ["q_proj"], "r": 1},
    "rank_16": {"target_modules": ["q_proj", "down_proj"], "r": 16},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "r": 4},
    "rank_pattern": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 7}},
    "alpha_pattern": {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"q_proj": 3}},
    "patterns_by_regex": {
        "target_modules": "all-linear",
        "rank_pattern": {r"layers\.1\..*": 3, "q_proj": 5, r"^model.layers.0.mlp.up_proj": 6},
        "alpha_pattern": {r".*\.(up|gate)_proj": 32},
    },
    "patterns_with_rslora": {
        "target_modules": ["q_proj", "gate_proj"],
        "use_rslora": True,
        "rank_pattern": {"gate_proj": 6},
        "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 1},
    },
    "alpha_fraction": {"target_modules": ["q_proj"], "lora_alpha": 2.5},
    "dropout": {"target_modules": ["q_proj"], "lora_dropout": 0.1},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "random_start": {"target_modules": ["q_proj"], "init_lora_weights": False},
    "no_task_type": {"target_modules": ["q_proj", "v_proj"], "task_type": None},
    "bf16": {"target_modules": ["q_proj", "up_proj"]},
    "fp16": {"target_modules": ["q_proj", "up_proj"]},
    "mixed_dtypes": {"target_modules": ["q_proj", "up_proj"]},
    "other_base_name": {"target_modules": ["q_proj"]},
    "extra_files": {"target_modules": ["q_proj"]},
    "unsloth": {"target_modules": ["q_proj"], "task_type": None},
}
GOOD_KINDS = sorted(_GOOD)
UNSLOTH_MAPPING = {
    "base_model_class": "Qwen3ForCausalLM",
    "parent_library": "transformers.models.qwen3.modeling_qwen3",
    "unsloth_fixed": True,
}


def base_info(model: nn.Module, name: str = "tiny") -> BaseInfo:
    """What the store would know of `model`: every linear but the output layer."""
    targets = {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path != "lm_head"
    }
    return BaseInfo(name=name, targets=targets, context_tokens=64)


def make_good(folder: Path, kind: str, model: nn.Module, seed: int = 0) -> nn.Module:
    """Saves an adapter of `kind` into `folder`; returns PEFT's own model with it applied."""
    options = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8} | _GOOD[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**options))
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.05
                parameter.data = parameter.data.to(_dtype_of(kind, name))
    peft_model.eval()
    peft_model.save_pretrained(str(folder))
    if kind == "other_base_name":  # PEFT writes the model's own name over it
        edit_config(folder, base_model_name_or_path="other/base")
    if kind == "unsloth":
        edit_config(folder, auto_mapping=UNSLOTH_MAPPING)
    if kind == "extra_files":
        (folder / "notes.txt").write_text("nothing of interest")
        (folder / "checkpoint-1").mkdir()
    return peft_model


def edit_config(folder: Path, **values: Any) -> None:
    """Sets keys of the config; the marker `...` removes one."""
    table = json.loads((folder / CONFIG).read_text()) | values
    text = json.dumps({k: v for k, v in table.items() if v is not ...})
    (folder / CONFIG).write_text(text)


def deltas(peft_model: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's own change of every adapted linear, float32."""
    found = {}
    for path, module in peft_model.named_modules():
        if isinstance(module, LoraLayer):
            for part in (module.lora_A, module.lora_B):
                part["default"].to(torch.float32)  # in place; else PEFT rounds its answer
            found[path.removeprefix("base_model.model.")] = module.get_delta_weight("default")
    return found


def _dtype_of(kind: str, name: str) -> torch.dtype:
    if kind == "bf16" or (kind == "mixed_dtypes" and "q_proj" in name):
        return torch.bfloat16
    return torch.float16 if kind == "fp16" else torch.float32


def stage_raw(
    store: ObjectStore, folder: Path, samples: bytes, name: str, owner: str, upload_id: str
) -> None:
    """Puts every file of `folder` into staging with a fitting `upload.json`, checking nothing."""
    files = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
    files["samples.jsonl"] = samples
    for file, data in files.items():
        store.put(keys.staging(upload_id) + file, data)
    upload = {
        "name": name,
        "owner": owner,
        "created_at": "2026-01-31T06:00:00+00:00",
        "files": {
            file: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for file, data in files.items()
        },
    }
    store.put(keys.staging(upload_id) + "upload.json", json.dumps(upload).encode())
