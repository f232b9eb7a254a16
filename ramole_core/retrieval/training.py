"""Contrastive training of a sentence encoder on the sample prompts of adapters.

LoraRetriever (arXiv 2402.09997, section 3.2) trains with the samples of some adapters and uses the
encoder for all. Here each sample is pulled to the mean of the other samples of its adapter, the
vector that retrieval will compare it with, and away from the other adapters' (InfoNCE).
Guarantees: the same model, samples, recipe and seed give the same weights on the same machine and
thread count. Dims: N adapters of a step, M samples of each, D width.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

from ramole_core.retrieval.truncation import MiddleCut

OnStep = Callable[[int, float], None]
LEAST_TO_CROP: Final = 12  # words


@dataclass(frozen=True)
class Recipe:
    """Chosen on the released sample prompts (README, benchmarks.retrieval)."""

    steps: int = 60
    adapters_per_step: int = 19
    samples_per_adapter: int = 4
    learning_rate: float = 5e-5
    temperature: float = 0.05
    warmup_share: float = 0.1
    crop: float = 0.5  # probability that a sample loses a span of its words
    word_dropout: float = 0.1  # probability of every word to be left out
    train_tokens: int = 64  # of each sample, cut in the middle
    max_tokens: int = 256  # of each text that the trained encoder embeds
    shrinkage: float = 0.5  # of the whitening


def fine_tune(
    model: Any,
    samples: Sequence[Sequence[str]],
    recipe: Recipe,
    seed: int,
    on_step: OnStep = lambda step, loss: None,
) -> None:
    """Trains a sentence-transformers model in place on the samples of each adapter.

    `samples` has at least two adapters with two samples each. `on_step` sees every step's loss;
    what it raises ends the training.
    """
    cut = MiddleCut.of(model, recipe.train_tokens) or str
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_groups(parameters), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    with torch.random.fork_rng(devices=[]), _without_attention_dropout(model):
        torch.manual_seed(seed)
        model.train()
        for step, batch in enumerate(_batches(samples, recipe, random.Random(seed))):
            texts = [[cut(text) for text in of_adapter] for of_adapter in batch]
            loss = leave_one_out_loss(_embedded(model, texts), recipe.temperature)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            on_step(step, loss.item())
        model.eval()


def leave_one_out_loss(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of unit vectors (N, M, D): each against the unit means of all N adapters' vectors,
    its own adapter's without itself."""
    num, count, _ = vectors.shape
    total = vectors.sum(dim=1, keepdim=True)  # (N, 1, D)
    others = torch.einsum("nmd,kd->nmk", vectors, F.normalize(total[:, 0], dim=-1))  # (N, M, N)
    own = (vectors * F.normalize(total - vectors, dim=-1)).sum(dim=-1)  # (N, M)
    same = torch.eye(num, dtype=torch.bool, device=vectors.device)[:, None]  # (N, 1, N)
    logits = torch.where(same, own[..., None], others) / temperature  # (N, M, N)
    labels = torch.arange(num, device=vectors.device).repeat_interleave(count)  # (N·M,)
    return F.cross_entropy(logits.flatten(0, 1), labels)


def _embedded(model: Any, batch: list[list[str]]) -> torch.Tensor:
    """Unit vectors (N, M, D) float32 of N lists of M texts."""
    features = model.preprocess([text for of_adapter in batch for text in of_adapter])
    features = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in features.items()}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=has_native_bfloat16()):
        vectors = model(features)["sentence_embedding"]
    return F.normalize(vectors.float(), dim=-1).view(len(batch), -1, vectors.shape[-1])


def _batches(
    samples: Sequence[Sequence[str]], recipe: Recipe, rng: random.Random
) -> Iterator[list[list[str]]]:
    """Every adapter's samples go round in a shuffled deck, so that all are seen equally often."""
    decks: list[list[str]] = [[] for _ in samples]
    count = recipe.samples_per_adapter
    for _ in range(recipe.steps):
        chosen = rng.sample(range(len(samples)), min(recipe.adapters_per_step, len(samples)))
        yield [
            [_thinned(text, recipe, rng) for text in _dealt(decks[i], samples[i], count, rng)]
            for i in chosen
        ]


def _dealt(deck: list[str], texts: Sequence[str], count: int, rng: random.Random) -> list[str]:
    if len(deck) < count:
        deck[:] = rng.sample(texts, len(texts))
    while len(deck) < count:  # an adapter with few samples gives them more than once
        deck += rng.sample(texts, len(texts))
    return [deck.pop() for _ in range(count)]


def _thinned(text: str, recipe: Recipe, rng: random.Random) -> str:
    """The text without one span of a tenth to a half of its words, and without single words: what
    the samples of an adapter have in common survives, what one of them is about often does not."""
    words = text.split()
    if len(words) >= LEAST_TO_CROP and rng.random() < recipe.crop:
        width = int(len(words) * rng.uniform(0.1, 0.5))
        start = rng.randrange(len(words) - width)
        del words[start : start + width]
    return " ".join([w for w in words if rng.random() >= recipe.word_dropout] or words)


def _groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Biases and norms do not decay."""
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


@contextmanager
def _without_attention_dropout(model: Any) -> Iterator[None]:
    """With it torch leaves the fused attention: a step takes twice as long on a CPU."""
    found = [
        (module, module.p)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and name.endswith("attention.self.dropout")
    ]
    for module, _ in found:
        module.p = 0.0
    yield
    for module, p in found:
        module.p = p


def _rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear to zero."""
    warmup = max(1, round(recipe.warmup_share * recipe.steps))
    return min(1.0, (step + 1) / warmup) * max(0.0, 1 - step / max(1, recipe.steps))


def has_native_bfloat16() -> bool:
    """True where bfloat16 is faster than float32, not an emulation of it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16"))
