"""A Llama with random weights, its tokenizer, and random adapters and routers in memory.

No token ends an answer: the model, its generation settings and the tokenizer name none.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.engine.sizes import Shape
from benchmarks.engine.workload import ref_of
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.mole.router import RouterWeights, random_router

Targets = Mapping[str, tuple[int, int]]


def random_llama(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Attends with sdpa, as transformers does by default."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context_tokens,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    with device:
        model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval().requires_grad_(False)


def twin(model: Any) -> Any:
    """Modules of its own over the same weights: what is put into one is not in the other."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def word_tokenizer(vocabulary: int) -> Any:
    """Reads `t7 t12 …` as the ids 7, 12, …; nothing is added to a text."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast
    return tokenizer(tokenizer_object=words)


def random_adapter(targets: Targets, rank: int, seed: int) -> LoraWeights:
    """Normal weights; its term is about as large as an eighth of the linear's input."""
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: LoraPair(
                torch.randn(rank, d_in, generator=generator) / d_in**0.5,
                torch.randn(d_out, rank, generator=generator) / (8 * rank**0.5),
            )
            for name, (d_out, d_in) in targets.items()
        }
    )


class Adapters:
    """An AdapterSource over memory."""

    def __init__(self, targets: Targets, num: int, rank: int) -> None:
        self.weights = {ref_of(i): random_adapter(targets, rank, i) for i in range(num)}

    def load(self, ref: AdapterRef) -> LoraWeights:
        """See AdapterSource."""
        return self.weights[ref]


class Routers:
    """A RouterSource of one router, whatever its version."""

    def __init__(self, targets: Targets, rank: int) -> None:
        self.router = random_router(targets, rank, torch.Generator().manual_seed(1))

    def load_router(self, version: str) -> RouterWeights:
        """See RouterSource."""
        return self.router
