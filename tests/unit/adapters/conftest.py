"""One tiny random Llama for all tests of this folder; nobody changes it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.gate import Limits
from tests.adapters_corpus import base_info


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def base(model: LlamaForCausalLM) -> BaseInfo:
    return base_info(model)


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits(max_adapter_bytes=1 << 20, max_adapter_rank=256)
