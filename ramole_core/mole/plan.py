"""The description of one forward's rows that the mixture layers read.

Dims: N rows of a segment (every row is one token of one prompt), K experts of one prompt, P experts
of a segment, S packed columns of one linear, L linears that read the same input.
A plan holds for one forward: consecutive rows in segments, each with the packed experts of all its
rows. How prompts are put into segments changes the work, never the answer (`partition`).
It also collects the gate weights of the rows that give a token: the mean of α over all target
linears, for routed prompts only; the others' weights do not depend on the token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ramole_core.mole.gates import Mix
from ramole_core.mole.packed import Columns, Packed, PackedGroup


@dataclass(eq=False)
class Segment:
    """Some consecutive rows and the experts that they use. `mixes` are those of its prompts."""

    begin: int  # first row of the forward
    end: int  # behind the last row
    packed: Packed
    prior: torch.Tensor  # (P, N) float32, log prior; -inf: not this prompt's expert
    static: torch.Tensor  # (P, N) float32, α with all scores 0
    foreign: torch.Tensor | None  # (P, N) bool, not the prompt's active experts; None: nowhere
    routed: torch.Tensor | None  # (N,) bool, the router's scores decide; None: for all rows
    fused: torch.Tensor | None  # (N,) bool, gate `fusion`; None: nowhere
    counted: torch.Tensor | None  # (M,) int64, rows that give a token; None: all
    any_routed: bool
    alphas: dict[PackedGroup, torch.Tensor] = field(default_factory=dict)  # (L, P, M) of each group
    unscored: set[str] = field(default_factory=set)  # linears whose scores are all 0
    # A group's input and mixed columns, until its last linear has read them.
    shared: dict[PackedGroup, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _foreign: dict[Columns, torch.Tensor] = field(default_factory=dict)
    _static: dict[Columns, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        begin: int,
        mixes: Sequence[Mix],
        num_rows: Sequence[int],
        counted: Sequence[int] | None,
        packed: Packed,
        device: torch.device,
    ) -> "Segment":
        """Prompts `mixes` with `num_rows` rows each, one behind the other from row `begin` on.

        `counted` are places within the segment. Lists first, tensors once. `packed` must hold
        every active expert of `mixes`.
        """
        place = {ref: p for p, ref in enumerate(packed.experts)}
        prior = [[-torch.inf] * len(place) for _ in mixes]
        static = [[0.0] * len(place) for _ in mixes]
        for row, mix in enumerate(mixes):
            log_prior, weights = mix.log_prior(), mix.static_weights()
            for i in mix.active():
                prior[row][place[mix.experts[i]]] = log_prior[i]
                static[row][place[mix.experts[i]]] = weights[i]
        foreign = [[value == -torch.inf for value in row] for row in prior]
        for row, mix in enumerate(mixes):
            if not mix.routed:  # its softmax is not used, but must not be NaN
                prior[row] = [0.0] * len(place)
        routed, fused = [m.routed for m in mixes], [m.gate == "fusion" for m in mixes]
        rows = [i for i, num in enumerate(num_rows) for _ in range(num)]
        alike = rows == list(range(len(mixes)))  # one row each
        prompts = None if alike else torch.tensor(rows, device=device)

        def by_row(values: Sequence[Sequence[float]] | Sequence[Sequence[bool]]) -> torch.Tensor:
            tensor = torch.tensor(values, device=device).view(len(mixes), -1)
            return (tensor if prompts is None else tensor.index_select(0, prompts)).T.contiguous()

        return cls(
            begin=begin,
            end=begin + len(rows),
            packed=packed,
            prior=by_row(prior),
            static=by_row(static),
            foreign=by_row(foreign) if any(map(any, foreign)) else None,
            routed=None if all(routed) else by_row([[r] for r in routed])[0],
            fused=by_row([[f] for f in fused])[0] if any(fused) else None,
            counted=None
            if counted is None
            else torch.tensor(counted, dtype=torch.int64, device=device),
            any_routed=any(routed),
        )

    @property
    def num_giving(self) -> int:
        """M, the rows that give a token."""
        return self.end - self.begin if self.counted is None else len(self.counted)

    def foreign_columns(self, columns: Columns) -> torch.Tensor | None:
        """Which packed columns are not the row's own: (S, N) bool; None: none."""
        if self.foreign is None:
            return None
        if columns not in self._foreign:
            self._foreign[columns] = self.foreign.index_select(0, columns.expert)
        return self._foreign[columns]

    def static_columns(self, columns: Columns) -> torch.Tensor:
        """α with all scores 0, one value per packed column: (S, N) float32."""
        if columns not in self._static:
            self._static[columns] = self.static.index_select(0, columns.expert)
        return self._static[columns]

    def record(self, group: PackedGroup, alpha: torch.Tensor) -> None:
        """Keeps the α (L, P, N) of a group's linears for the rows that give a token. What is
        computed once more (inputs that are equal, but not shared) counts once."""
        kept = alpha if self.counted is None else alpha.index_select(2, self.counted)
        self.alphas[group] = kept.detach()

    def weights(self) -> torch.Tensor:
        """Mean α over all linears, of the rows that give a token: (M, P) float32."""
        static = self.static if self.counted is None else self.static[:, self.counted]  # (P, M)
        if not self.alphas:
            return static.T
        alphas = torch.cat(list(self.alphas.values()))  # (linears, P, M)
        total = alphas.sum(dim=0) + len(self.unscored) * static
        return total.T / (len(alphas) + len(self.unscored))

    def restart(self) -> None:
        """Forgets what the last forward left, for one more forward of the same rows."""
        self.alphas.clear()
        self.unscored.clear()
        self.shared.clear()


@dataclass(eq=False)
class BatchPlan:
    """The segments of one forward; rows outside of them have no experts. For one thread."""

    num_rows: int
    segments: tuple[Segment, ...]

    @classmethod
    def of_batch(
        cls, mixes: Sequence[Mix], num_tokens: int, packed: Packed, device: torch.device
    ) -> "BatchPlan":
        """For inputs (B, T, D): every prompt has T tokens, the last of which gives a token; all
        rows in one segment."""
        ends = [(i + 1) * num_tokens - 1 for i in range(len(mixes))]
        lengths = [num_tokens] * len(mixes)
        counted = None if num_tokens == 1 else ends
        segment = Segment.of(0, mixes, lengths, counted, packed, device)
        return cls(len(mixes) * num_tokens, (segment,) if packed.experts else ())
