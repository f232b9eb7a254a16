"""One mixture layer: the low-rank kernel beside the published formula, in one process.

    python -m benchmarks.mixture [--json PATH]

Both compute RAMoLE eqs. 6-11 (router, softmax over each prompt's k = 3 experts) for the same batch
and add the result to what the base linear gave: the published way materialises v_i = B_i A_i x of
all unique experts for all tokens; ours scores by Gram matrices and scatters α over the packed
ranks. One linear alone: what linears that read the same input share is not in these times. Times
are interleaved, the median of several, and given as a share of the base linear's own time. The
outputs are compared before anything is timed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F

from benchmarks.report import Row, report
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.gates import Mix
from ramole_core.mole.layer import add_term
from ramole_core.mole.plan import BatchPlan
from ramole_core.mole.router import RouterWeights, random_router

# (prompts, tokens of each, width, unique experts)
CASES: Final = ((32, 1, 1024, 8), (32, 1, 1024, 48), (32, 1, 2048, 48), (8, 32, 1024, 48))
RANK: Final = 8
K: Final = 3
REPEATS: Final = 15
TARGET: Final = "q"
CPU: Final = torch.device("cpu")

Call = Callable[[], object]


class Adapters:
    """Random adapters of one linear and a router, as the bank asks for them."""

    def __init__(self, width: int, count: int) -> None:
        self.refs = [AdapterRef(f"a{i}", 1) for i in range(count)]
        self.pairs = {
            ref: LoraPair(
                torch.randn(RANK, width) / width**0.5, torch.randn(width, RANK) / RANK**0.5
            )
            for ref in self.refs
        }
        self.router = random_router(
            {TARGET: (width, width)}, RANK, torch.Generator().manual_seed(1)
        )

    def load(self, ref: AdapterRef) -> LoraWeights:
        """See AdapterSource."""
        return LoraWeights({TARGET: self.pairs[ref]})

    def load_router(self, version: str) -> RouterWeights:
        """See RouterSource."""
        return self.router


def main() -> int:
    """Runs all cases; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = [row for case in CASES for row in measure(*case)]
    settings = {"rank": RANK, "k": K, "repeats": REPEATS, "threads": arguments.threads}
    report(rows, settings, arguments.json)
    return 1 if any(row.met is False for row in rows) else 0


@torch.inference_mode()
def measure(prompts: int, tokens: int, width: int, unique: int) -> list[Row]:
    """Rows of one case."""
    adapters = Adapters(width, unique)
    bank = AdapterBank(
        {TARGET: (width, width)}, unique, adapters, CPU, torch.float32, routers=adapters
    )
    for ref in adapters.refs:
        bank.acquire(ref)
    chosen = [[(i + j * 5) % unique for j in range(K)] for i in range(prompts)]
    mixes = [
        Mix("mole-plain", tuple(adapters.refs[i] for i in experts), router="r")
        for experts in chosen
    ]
    packed = bank.pack(adapters.refs, "r")
    [segment] = BatchPlan.of_batch(mixes, tokens, packed, CPU).segments
    x = torch.randn(prompts, tokens, width)  # (B, T, D)
    weight = torch.randn(width, width) / width**0.5
    stacked_a = torch.stack([adapters.pairs[ref].a for ref in packed.experts])  # (P, R, D)
    stacked_b = torch.stack([adapters.pairs[ref].b for ref in packed.experts])  # (P, D, R)
    places = {ref: p for p, ref in enumerate(packed.experts)}
    mask = torch.full((prompts, 1, unique), -torch.inf)
    for row, experts in enumerate(chosen):
        mask[row, 0, [places[adapters.refs[i]] for i in experts]] = 0.0

    one, other = torch.zeros(2, prompts * tokens, width)  # (B·T, D) each

    def ours() -> None:
        add_term(one, x, TARGET, segment)

    def theirs() -> None:
        term = published(x, stacked_a, stacked_b, *adapters.router.pairs[TARGET], mask)
        other.add_(term.view_as(other))

    ours()
    theirs()
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4), "the two formulas disagree"
    base, fast, slow = medians(lambda: F.linear(x, weight), ours, theirs)
    name = f"d{width}_p{unique}_tokens{prompts * tokens}"
    return [
        Row(f"mole_share_{name}", fast / base, "base", better="lower"),
        Row(f"published_share_{name}", slow / base, "base", better="lower"),
        Row(f"speedup_{name}", slow / fast, "x", 1.0),
    ]


def published(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    router_a: torch.Tensor,
    router_b: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """RAMoLE eqs. 6-11 as written: x (B, T, D), a (P, R, D), b (P, D, R), mask (B, 1, P)."""
    v = torch.einsum("btd,prd,per->btpe", x, a, b)  # (B, T, P, D_out), v_i = B_i A_i x
    q = F.linear(x, router_a)  # (B, T, R_r)
    keys = v @ router_b  # (B, T, P, R_r), B_rᵀ v_i
    scores = torch.einsum("btr,btpr->btp", q, keys) / router_a.shape[0] ** 0.5
    alpha = torch.softmax(scores + mask, dim=-1)  # (B, T, P)
    return torch.einsum("btp,btpe->bte", alpha, v)


def medians(*calls: Call) -> list[float]:
    """Seconds of each call, interleaved, after one warm-up round."""
    times: list[list[float]] = [[] for _ in calls]
    for round_ in range(REPEATS + 1):
        for call, kept in zip(calls, times, strict=True):
            repeats = 1 if round_ == 0 else 5
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            if round_:
                kept.append((time.perf_counter() - began) / repeats)
    return [statistics.median(kept) for kept in times]


if __name__ == "__main__":
    sys.exit(main())
