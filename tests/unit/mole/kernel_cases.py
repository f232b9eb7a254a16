"""Random segments and groups for the fused kernels, and their answer by the formula in torch.

As a program (TRITON_INTERPRET=1): compares them on the CPU in Triton's interpreter.
"""

import random
import sys
from dataclasses import dataclass

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole import kernels, layer
from ramole_core.mole.gates import Mix
from ramole_core.mole.packed import Columns, Packed, PackedGroup
from ramole_core.mole.plan import Segment

CPU = torch.device("cpu")
D_IN = 8
ROUTED = ("mole", "cascade", "mole-plain")
FIXED = ("mole", "selection", "mixture", "weights")  # without a router


@dataclass(frozen=True)
class Shape:
    """What a case is like. Rows are of prompts with up to three rows and four experts each."""

    num_rows: int
    num_experts: int
    num_linears: int = 2
    router_rank: int = 8  # 0: no router
    max_rank: int = 8
    gates: str = "both"  # routed, fixed, both
    dtype: torch.dtype = torch.float32
    overflow: bool = False  # float16 only: the columns of one expert are inf in every row
    shared: bool = False  # every prompt has all experts: no column is foreign


SHAPES = [
    Shape(1, 1, num_linears=1),
    Shape(1, 1, router_rank=0),
    Shape(70, 1, num_linears=3, router_rank=16),
    Shape(1, 70, router_rank=17, max_rank=3),
    Shape(2, 70, num_linears=1, router_rank=4, max_rank=2, gates="routed", shared=True),
    Shape(33, 65, num_linears=1, max_rank=20, dtype=torch.bfloat16),
    Shape(32, 2, gates="fixed"),
    Shape(31, 3, router_rank=1, gates="routed"),
    Shape(5, 3, router_rank=40, max_rank=50, gates="routed", shared=True),
    Shape(7, 4, shared=True, router_rank=0),
    Shape(40, 3, overflow=True, dtype=torch.float16),
    Shape(40, 3, overflow=True, gates="routed", dtype=torch.float16),
    Shape(9, 2, overflow=True, router_rank=0, dtype=torch.float16),
]


def random_shape(rng: random.Random) -> Shape:
    """Small ones: a program of the interpreter takes milliseconds."""
    dtype = rng.choice([torch.float32, torch.bfloat16, torch.float16])
    return Shape(
        num_rows=rng.randint(1, 70),
        num_experts=rng.choice([1, 2, 3, 5, 9, 17]),
        num_linears=rng.randint(1, 3),
        router_rank=rng.choice([0, 1, 4, 8, 16, 21]),
        max_rank=rng.choice([1, 4, 16, 33]),
        gates=rng.choice(["routed", "fixed", "both"]),
        dtype=dtype,
        overflow=dtype == torch.float16 and rng.random() < 0.5,
        shared=rng.random() < 0.2,
    )


class Case:
    """The tensors of one shape; the same numbers for the same seed on every device."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.rng = shape, random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.refs = [AdapterRef(f"a{i:02}", 1) for i in range(shape.num_experts)]
        self.prompts = self._prompts()
        ranks = [self.rng.randint(0, shape.max_rank) for _ in self.refs]
        self.widest = self.rng.randrange(len(ranks))  # the one that may overflow
        ranks[self.widest] = shape.max_rank
        self.ranks = tuple((place, rank) for place, rank in enumerate(ranks) if rank)
        x = self._normal(shape.num_rows, D_IN)
        x[:, 0] = x[:, 0].abs() + 1.1  # by the largest number: inf
        self.x = x.to(shape.dtype)
        width = sum(rank for _, rank in self.ranks)
        self.a = self._normal(shape.num_linears * (width + shape.router_rank), D_IN) * 0.5
        self.a = self.a.to(shape.dtype)
        if shape.overflow:
            begin = sum(ranks[: self.widest])
            for linear in range(shape.num_linears):
                columns = self.a[linear * width + begin :][: shape.max_rank]
                columns.zero_()[:, 0] = torch.finfo(shape.dtype).max
        blocks = [self._normal(shape.router_rank, width) * 0.3 for _ in range(shape.num_linears)]
        self.gram = torch.block_diag(*blocks) if shape.router_rank else None

    def _normal(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=self.generator)

    def _prompts(self) -> list[tuple[Mix, int]]:
        left, found = self.shape.num_rows, []
        while left:
            num = self.rng.randint(1, min(3, left))
            found.append((self._mix(), num))
            left -= num
        return found

    def _mix(self) -> Mix:
        gates, rng = self.shape.gates, self.rng
        routed = gates == "routed" or (gates == "both" and rng.random() < 0.6)
        num = self.shape.num_experts if self.shape.shared else rng.randint(1, 4)
        experts = tuple(rng.sample(self.refs, min(num, len(self.refs))))
        return Mix(
            rng.choice(ROUTED if routed else FIXED[: 3 if self.shape.shared else 4]),
            experts,
            tuple(rng.uniform(0.3, 0.7) for _ in experts),
            tuple(rng.uniform(-1, 1) for _ in experts),
            "r1" if routed else None,
        )

    def segment(self, device: torch.device) -> Segment:
        mixes, num_rows = zip(*self.prompts, strict=True)
        packed = Packed(tuple(self.refs), "r1", {})
        return Segment.of(0, mixes, num_rows, None, packed, device)

    def group(self, device: torch.device) -> PackedGroup:
        return PackedGroup(
            tuple(f"linear {i}" for i in range(self.shape.num_linears)),
            self.a.to(device),
            (),
            Columns.of(self.ranks, len(self.refs), device),
            None if self.gram is None else self.gram.to(device),
        )

    def spoilt_rows(self) -> torch.Tensor:
        """(N,) bool, an expert of the row's own overflows."""
        if not self.shape.overflow:
            return torch.zeros(self.shape.num_rows, dtype=torch.bool)
        assert not torch.mm(self.a, self.x.T).isfinite().all(dim=0).any(), "all rows must overflow"
        mixes = [mix for mix, num in self.prompts for _ in range(num)]
        bad = self.refs[self.widest]
        return torch.tensor([bad in [m.experts[i] for i in m.active()] for m in mixes])

    @torch.no_grad()
    def wanted(self) -> tuple[torch.Tensor, torch.Tensor | None, set[str]]:
        """z, α and the linears that are not scored, by torch on the CPU."""
        group, segment = self.group(CPU), self.segment(CPU)
        z = layer.mixed_columns(self.x, group, segment)
        return z, segment.alphas.get(group), segment.unscored

    @torch.no_grad()
    def found(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None, set[str]]:
        """The same by the kernels, from the same product."""
        group, segment = self.group(device), self.segment(device)
        product = torch.mm(self.a, self.x.T).to(device)
        z = kernels.mixed_columns(product, group, segment)
        return z, segment.alphas.get(group), segment.unscored


def check(shape: Shape, seed: int, device: torch.device) -> None:
    """Raises AssertionError when formula and kernels differ by more than the order of sums."""
    case = Case(shape, seed)
    z, alpha, unscored = case.wanted()
    found_z, found_alpha, found_unscored = case.found(device)
    assert found_z.dtype == z.dtype and found_unscored == unscored
    spoilt = case.spoilt_rows()  # what stands there instead of numbers does not matter
    assert z[:, :, ~spoilt].isfinite().all()
    assert not found_z[:, :, spoilt].isfinite().all(dim=1).any()
    step = 2 * torch.finfo(shape.dtype).eps  # the last digit may round to either side
    close(found_z, z, ~spoilt, rtol=max(1e-4, step), atol=1e-5)
    assert (alpha is None) == (found_alpha is None)
    if alpha is not None:
        close(found_alpha, alpha, ~spoilt, rtol=1e-4, atol=1e-6)


def close(found: torch.Tensor, wanted: torch.Tensor, rows: torch.Tensor, **by: float) -> None:
    torch.testing.assert_close(found.cpu()[:, :, rows], wanted[:, :, rows], **by)


def check_all(device: torch.device, num_random: int) -> int:
    """Number of cases that were compared."""
    rng = random.Random(0)
    shapes = SHAPES + [random_shape(rng) for _ in range(num_random)]
    for seed, shape in enumerate(shapes):
        try:
            check(shape, seed, device)
        except Exception as e:
            raise AssertionError(f"seed {seed}: {shape}") from e
    return len(shapes)


if __name__ == "__main__":
    assert "triton" not in sys.modules, "importing the layer imports triton"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # new memory is NaN: what is not written shows
    print(check_all(CPU, int(sys.argv[1])), "cases agree")
