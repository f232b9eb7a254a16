"""Which models may run over slots, and that a refused one stays as it was."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, Llama4TextConfig

from ramole_core.engine import attention
from ramole_core.engine.backend import Backend
from ramole_core.errors import ConfigError

from ..mole.tiny import CONFIGS, SIZES, tiny_model


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_is_switched_and_given_back(kind):
    model = tiny_model(kind)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        backend = Backend.install(model)
        assert model.config._attn_implementation == attention.NAME
        backend.remove()
        assert torch.equal(model(input_ids=ids).logits, before)


def test_the_cache_of_a_token_is_measured():
    backend = Backend.install(tiny_model("llama"))
    assert backend.bytes_per_token == 2 * 2 * 2 * 8 * 4  # layers, k and v, heads, width, float32


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4),
            "attention code",
        ),
        (BloomConfig(hidden_size=32, n_layer=1, n_head=4), "attention code"),
        (
            Llama4TextConfig(
                **SIZES,
                num_key_value_heads=2,
                head_dim=8,
                intermediate_size_mlp=48,
                num_local_experts=2,
                attention_chunk_size=4,
            ),
            "chunked_attention",
        ),
    ],
)
def test_architectures_that_cannot_are_refused_in_one_line(config, words):
    model = AutoModelForCausalLM.from_config(config).eval()
    before = model.config._attn_implementation
    with pytest.raises(ConfigError, match=words) as error:
        Backend.install(model)
    assert "\n" not in str(error.value)
    assert "RAMOLE_MODEL" in str(error.value)
    assert model.config._attn_implementation == before


def test_a_model_that_answers_differently_is_refused_and_stays_as_it_was(monkeypatch):
    model = tiny_model("llama")
    # Layers that hide a part of their arithmetic from the attention function.
    monkeypatch.setattr(attention, "_decode", lambda q, *_: torch.zeros_like(q[:1]))
    with pytest.raises(ConfigError, match="answers differently"):
        Backend.install(model)
    assert model.config._attn_implementation == "sdpa"
    with torch.inference_mode():
        model(input_ids=torch.tensor([[1, 2]]))
