"""Tiny random models of every tested architecture, and random adapters, with or without PEFT."""

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    set_seed,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.mole.router import RouterWeights

VOCAB = 259
WINDOW = 12
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen": lambda: Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "mistral": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=WINDOW),
    "gemma": lambda: Gemma2Config(
        **SIZES,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gptneox": lambda: GPTNeoXConfig(**SIZES),
}


def tiny_model(kind: str = "llama", seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        set_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    return model.eval()


def peft_adapter(model: nn.Module, seed: int, **config: Any) -> tuple[nn.Module, LoraWeights]:
    """A real PEFT model over a copy of `model`, and the same adapter as the bank takes it."""
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(**(defaults | config)))
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, module in peft.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
            a.copy_(torch.randn(a.shape, generator=generator) * 0.2)
            b.copy_(torch.randn(b.shape, generator=generator) * 0.2)
            pairs[name] = LoraPair(a.clone(), b * module.scaling["default"])
    return peft.eval(), LoraWeights(pairs)


def random_adapter(
    targets: dict[str, tuple[int, int]], rank: int, seed: int, scale: float = 0.2
) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: LoraPair(
                torch.randn(rank, d_in, generator=generator) * scale,
                torch.randn(d_out, rank, generator=generator) * scale,
            )
            for name, (d_out, d_in) in targets.items()
        }
    )


class DictSource:
    """An AdapterSource over a dict; a missing adapter raises KeyError."""

    def __init__(self, adapters: dict[Any, LoraWeights]) -> None:
        self.adapters = adapters
        self.loads: list[Any] = []

    def load(self, ref: Any) -> LoraWeights:
        self.loads.append(ref)
        return self.adapters[ref]


class DictRouters:
    """A RouterSource over a dict; a missing router raises KeyError."""

    def __init__(self, routers: dict[str, RouterWeights]) -> None:
        self.routers = routers
        self.loads: list[str] = []

    def load_router(self, version: str) -> RouterWeights:
        self.loads.append(version)
        return self.routers[version]
