"""The next token of every prompt: greedy, or by temperature and top_p.

Dims: B prompts, V vocabulary, N some of the prompts. A sampled prompt draws one number per token
from its own CPU generator, seeded by its request, so what it gets depends on nothing but its own
logits.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import torch

from ramole_core.engine.request import GenerationRequest

NO_TOKEN: Final = -1
MIN_TEMPERATURE: Final = 1e-6  # a smaller one rounds to 0 in float32


class Sampled(Protocol):
    """A prompt as it is sampled."""

    @property
    def request(self) -> GenerationRequest:
        """How it is decoded."""
        ...

    @property
    def generator(self) -> torch.Generator | None:
        """Its own random numbers; None: greedy."""
        ...


def next_tokens(logits: torch.Tensor, sequences: Sequence[Sampled]) -> list[int]:
    """logits (B, V) -> B token ids; -1 for a prompt whose logits are no numbers: NaN, +inf, or
    -inf for every token. Greedy for prompts without a generator; the others' generators move on
    by one number each."""
    tokens = logits.argmax(dim=-1)  # (B,)
    rows = [row for row, s in enumerate(sequences) if s.generator is not None]
    if rows:
        index = torch.tensor(rows, device=logits.device)  # (N,)
        tokens[index] = _sample(logits[index].float(), [sequences[row] for row in rows])
    usable = logits.amax(dim=-1).isfinite()  # (B,), NaN wins every maximum
    tokens = torch.where(usable, tokens, NO_TOKEN)  # (B,)
    return list(map(int, tokens.tolist()))


def generator_of(request: GenerationRequest) -> torch.Generator | None:
    """A generator seeded by the request; None for greedy ones."""
    return torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None


def _sample(logits: torch.Tensor, sequences: Sequence[Sampled]) -> torch.Tensor:
    """logits (N, V) float32 -> (N,) token ids."""
    draws = [float(torch.rand((), generator=s.generator)) for s in sequences]
    temperature = [max(s.request.temperature, MIN_TEMPERATURE) for s in sequences]
    top_p = [s.request.top_p for s in sequences]
    columns = torch.tensor([temperature, top_p, draws], device=logits.device)  # (3, N)
    return sample_tokens(logits, *columns[..., None].unbind())


def log_probabilities(
    logits: torch.Tensor, tokens: Sequence[int], wanted: Sequence[bool]
) -> list[float | None]:
    """log softmax(logits) of each prompt's token, float32, for the prompts of which it is wanted.

    logits (B, V) float32, B tokens (NO_TOKEN gives just any number) -> B numbers, None: not wanted.
    """
    rows = [row for row, is_wanted in enumerate(wanted) if is_wanted]
    found: list[float | None] = [None] * len(tokens)
    if rows:
        index = torch.tensor(rows, device=logits.device)  # (N,)
        chosen = torch.tensor([max(tokens[row], 0) for row in rows], device=logits.device)  # (N,)
        table = torch.log_softmax(logits[index], dim=-1)  # (N, V)
        for row, value in zip(rows, table.gather(-1, chosen[:, None])[:, 0].tolist(), strict=True):
            found[row] = value
    return found


def sample_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """Inverse-CDF sampling from the smallest set of likeliest tokens whose mass reaches top_p.

    logits (N, V) float32; temperature, top_p, draws (N, 1), draws in [0, 1) -> (N,) token ids.
    """
    best, order = logits.sort(dim=-1, descending=True, stable=True)  # (N, V) each
    # The subtraction comes first so that a tiny temperature gives -inf, not NaN.
    probabilities = torch.softmax((best - best[:, :1]) / temperature, dim=-1)  # (N, V)
    before = probabilities.cumsum(dim=-1) - probabilities  # (N, V), mass of likelier tokens
    kept = probabilities * (before < top_p)  # (N, V); the likeliest token always stays
    mass = kept.cumsum(dim=-1)  # (N, V)
    choice = (mass <= draws * mass[:, -1:]).sum(dim=-1, keepdim=True)  # (N, 1)
    choice = choice.clamp(max=logits.shape[-1] - 1)
    # Rounding must not leave the kept set, nor NaN, which keeps nothing, the vocabulary.
    last_kept = ((kept > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)  # (N, 1)
    return order.gather(-1, torch.minimum(choice, last_kept)).squeeze(-1)  # (N,)
