"""Decoding under recorded graphs (CUDA graphs): a step is one launch, not thousands of small ones.

Dims: B rows of a graph, n of a step, M = n rows that give a token, V vocabulary; L linears of a
group, P experts, N rows of a segment.
A step has a graph when all that runs decodes (`static_rows.Shape`); others run as they are, and so
does sampling, always. A graph serves one shape: rows and width in buckets, and the very packs. They
are read where they lie: packs live for many steps, for as long as the same experts are wanted, and
a copy of them into tensors of the graphs' own would need as much memory again and buckets of
columns. A shape gets its graph once it has come up PATIENCE times; the graphs used last stay.
A graph is recorded on the inputs of the step before, which writes what is written already, and
tried on the step's own beside the forward as it is: what it took for constant would show. Where
logits differ, or recording fails, a warning says so and no graph is ever used again: answers come
from the forward as it is, and so do the errors of a lost device or one whose memory is full.
Graphs end with what they read: slots laid out anew, packs that are gone.
Memory: all share one pool, about the activations of a forward of B rows, and each has its logits,
gate weights and launches (some tens of MiB). It is taken from the share that the plan leaves free.
Recorded by `cuda_recorder`; what that does has not been run on a GPU yet.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from ramole_core.engine.failures import Failure
from ramole_core.engine.rows import Rows
from ramole_core.engine.static_rows import Shape, StaticRows
from ramole_core.mole.plan import Segment

# A recording costs about four forwards: with shapes that never come back, a quarter of the time.
PATIENCE: Final = 16
MAX_GRAPHS: Final = 16
MAX_COUNTED: Final = 1024  # shapes whose steps are counted
# A capture that failed left the allocator of earlier versions without a way to free memory.
LEAST_TORCH: Final = "2.13"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a forward over static rows leaves: always the same tensors, or always new ones."""

    logits: torch.Tensor  # (B, V) float32
    alphas: tuple[dict[str, torch.Tensor], ...]  # by segment: a group's first linear -> (L, P, N)
    unscored: tuple[frozenset[str], ...]  # by segment: linears whose scores are all 0


Run = Callable[[], Outcome]
Recorder = Callable[[Run], Run]  # runs it, and gives what does the same work on the same tensors


class Graphs:
    """The forwards of one model. `forward` is the one as it is; `new_recorder` is None where there
    are no graphs; logits may differ by `tolerance` of the largest. For one thread."""

    def __init__(
        self,
        forward: Callable[[Rows], torch.Tensor],
        new_recorder: Callable[[], Recorder] | None,
        tolerance: float,
    ) -> None:
        self._forward = forward
        self._new_recorder = new_recorder
        self._recorder: Recorder | None = None  # of the graphs that there are
        self._tolerance = tolerance
        self._graphs: dict[Shape, _Graph] = {}  # the one used last stands last
        self._steps: Counter[Shape] = Counter()  # without a graph

    def forward(self, rows: Rows) -> torch.Tensor:
        """-> logits (M, V) float32, to be read before the next forward."""
        shape = None if self._new_recorder is None else Shape.of(rows)
        if shape is None:
            return self._forward(rows)
        if shape in self._graphs:
            self._graphs[shape] = self._graphs.pop(shape)
            return self._replayed(self._graphs[shape], rows)
        if len(self._steps) >= MAX_COUNTED:
            self._steps.clear()
        self._steps[shape] += 1
        return self._forward(rows) if self._steps[shape] < PATIENCE else self._tried(shape, rows)

    def clear(self) -> None:
        """Gives up all graphs and their memory; new ones may come."""
        self._graphs.clear()
        self._steps.clear()
        self._recorder = None

    def _replayed(self, graph: "_Graph", rows: Rows) -> torch.Tensor:
        try:
            outcome = graph.replay(rows)
        except Exception as error:  # out of memory, or a device that is lost for the next as well
            self._give_up(Failure.of(error).message)
        else:
            _hand_over(outcome, rows.plan.segments)
            return outcome.logits[: len(rows.chunks)]
        return self._forward(rows)

    def _tried(self, shape: Shape, rows: Rows) -> torch.Tensor:
        """Records a graph and compares what it gives with the forward as it is."""
        del self._steps[shape]
        graph, found = self._recorded(shape, rows)
        logits = self._forward(rows)  # last: writes what a wrong graph has written
        if graph is not None and found is not None:
            worst = _difference(found[: len(logits)], logits)
            if worst is not None and not worst <= self._tolerance:
                self._give_up(f"logits differ by {worst:.1e} of the largest")
            elif worst is not None:
                self._keep(shape, graph)
        return logits

    def _recorded(
        self, shape: Shape, rows: Rows
    ) -> "tuple[_Graph, torch.Tensor] | tuple[None, None]":
        """A new graph and its logits (B, V) for `rows`."""
        assert self._new_recorder is not None
        try:
            if not self._graphs:  # a pool ends with the last graph that shares it
                self._recorder = self._new_recorder()
            assert self._recorder is not None
            graph = _Graph(shape, rows, self._forward, self._recorder)
            return graph, graph.replay(rows).logits
        except Exception as error:  # whatever models, drivers and devices come up with
            self._give_up(Failure.of(error).message)
            return None, None

    def _keep(self, shape: Shape, graph: "_Graph") -> None:
        for other in [other for other in self._graphs if not other.alive]:
            del self._graphs[other]
        while len(self._graphs) >= MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[shape] = graph

    def _give_up(self, why: str) -> None:
        log.warning("decoding goes on without CUDA graphs: %s", why)
        self._new_recorder = None
        self.clear()


class _Graph:
    """The recorded forward of one shape."""

    def __init__(
        self,
        shape: Shape,
        rows: Rows,
        forward: Callable[[Rows], torch.Tensor],
        recorder: Recorder,
    ) -> None:
        self._static = StaticRows(shape, rows)
        self._forward = forward
        self._static.fill(rows, back=1)
        self._replay = recorder(self._run)

    def replay(self, rows: Rows) -> Outcome:
        self._static.fill(rows)
        return self._replay()

    def _run(self) -> Outcome:
        rows = self._static.rows()
        logits = self._forward(rows)  # (B, V)
        segments = rows.plan.segments
        return Outcome(
            logits,
            tuple({group.targets[0]: a for group, a in s.alphas.items()} for s in segments),
            tuple(frozenset(s.unscored) for s in segments),
        )


def cuda_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs that share one pool of memory."""
    pool: Any = torch.cuda.graph_pool_handle()
    side = torch.cuda.Stream(device)

    def record(run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        main = torch.cuda.current_stream(device)
        side.wait_stream(main)
        # The outer block gives the stream back even if `torch.cuda.graph` fails to.
        try:
            with torch.cuda.device(device), torch.cuda.stream(side):
                run()  # compiles, and makes what is made once, outside of the pool
                # Other threads load adapters and embed meanwhile.
                with torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"):
                    outcome = run()
        finally:
            main.wait_stream(side)

        def replay() -> Outcome:
            graph.replay()
            return outcome

        return replay

    return record


def graphs_work(device: torch.device) -> bool:
    """Whether `cuda_recorder` is for this device and torch."""
    return device.type == "cuda" and torch.__version__ >= LEAST_TORCH


def _hand_over(outcome: Outcome, segments: tuple[Segment, ...]) -> None:
    """Gives the step's segments what the forward would have left there. The α are overwritten by
    the next replay; until then they are read."""
    for segment, alphas, unscored in zip(segments, outcome.alphas, outcome.unscored, strict=True):
        num = segment.end - segment.begin
        groups = segment.packed.groups
        segment.alphas = {groups[target]: a[..., :num] for target, a in alphas.items()}
        segment.unscored = set(unscored)


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """The largest difference of logits (M, V), by the largest of `wanted`, over the rows that have
    numbers there; NaN where only `found` has none. None: no row has numbers."""
    usable = wanted.amax(dim=-1).isfinite()  # (M,); -inf may stand for tokens that never come
    if not usable.any():
        return None
    found, wanted = found[usable], wanted[usable]
    scale = wanted.abs().masked_fill(wanted.isinf(), 0.0).max().clamp(min=1e-6)
    apart = (found - wanted).abs().masked_fill(found == wanted, 0.0)
    return float(apart.max() / scale)
