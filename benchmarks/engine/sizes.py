"""How large the model, the pool and the runs are."""

from dataclasses import dataclass
from typing import Final

BATCH: Final = 32  # prompts decoded together, by every entrant
PROMPT_TOKENS: Final = 64
NEW_TOKENS: Final = 32
K: Final = 3


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights, and adapters of one rank on all its linears."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocabulary: int
    rank: int
    router_rank: int = 8
    adapters: int = 48
    family: int = 6  # adapters of one family: those that retrieval finds together
    bank: int = 64
    context_tokens: int = 256
    files: int = 32  # distinct adapter files behind the pools of any size


CPU_SHAPE: Final = Shape(1024, 8, 2816, 16, 4096, rank=8)  # 111 M parameters
CUDA_SHAPE: Final = Shape(4096, 32, 11008, 32, 32000, rank=16, files=8)  # 6.7 G parameters


@dataclass(frozen=True)
class Scale:
    """How much is run. The queues count prompts, the rest batches or rounds."""

    queue: int = 512  # waiting prompts of the rows about the mixture's price
    long_rounds: int = 1  # of every row with a long queue
    lengths: int = 512  # prompts of the row about continuous batching
    pool: int = 320  # prompts of the row about the pool's size
    rounds: int = 3  # of every row whose runs are short
    groups: int = 8  # groups of prompts for which adapters are merged into the weights


FULL: Final = Scale()
QUICK: Final = Scale(queue=64, lengths=48, pool=64, rounds=1, groups=2)
