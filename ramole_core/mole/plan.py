"""The description of one heterogeneous batch that the layers read.

Dims: B prompts, T tokens of this forward, K experts of one prompt, P unique experts of the batch.
A plan holds for one batch of prompts and many forwards (prefill, then one per token). It
also collects the routed prompts' gate weights: the mean of α over all target linears and all
positions that gave a token, i.e. the last position of each forward marked `counting` (the last
prompt position, then every generated token that was fed back). With left padding that position
is never padding; other positions, padding included, are computed and harmless.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ramole_core.mole.gates import Mix
from ramole_core.mole.packed import Columns, Packed


@dataclass(eq=False)
class BatchPlan:
    """One batch's experts and gates. Not thread-safe; one thread runs the model."""

    packed: Packed
    mixes: tuple[Mix, ...]  # B
    prior: torch.Tensor  # (B, P) float32, log prior; -inf: not this prompt's expert (the padding)
    static: torch.Tensor  # (B, P) float32, α with all scores 0
    routed: torch.Tensor | None  # (B,) bool, the router's scores decide; None: for all prompts
    fused: torch.Tensor  # (B,) bool, gate `fusion`
    own: torch.Tensor | None  # (B, P) bool, the prompt's active experts; None: all are everyone's
    weight_sum: torch.Tensor  # (B, P) float32, sum of α over counted linears and positions
    num_weights: int = 0
    any_routed: bool = False
    any_fused: bool = False
    counting: bool = False  # set by the runner: the last position of this forward gives a token
    num_tokens: int = 0  # T of this forward, set by the runner (only flattened inputs need it)
    _by_columns: dict[Columns, torch.Tensor] = field(default_factory=dict)
    _own_by_columns: dict[Columns, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def build(cls, mixes: Sequence[Mix], packed: Packed, device: torch.device) -> "BatchPlan":
        """Lists first, tensors once. `packed` must hold every active expert of `mixes`."""
        place = {ref: p for p, ref in enumerate(packed.experts)}
        prior = [[-torch.inf] * len(place) for _ in mixes]
        static = [[0.0] * len(place) for _ in mixes]
        for row, mix in enumerate(mixes):
            log_prior, weights = mix.log_prior(), mix.static_weights()
            for i in mix.active():
                prior[row][place[mix.experts[i]]] = log_prior[i]
                static[row][place[mix.experts[i]]] = weights[i]
            if not mix.routed:  # its softmax is not used, but must not be NaN
                prior[row] = [0.0] * len(place)
        shape = (len(mixes), len(place))
        return cls(
            packed=packed,
            mixes=tuple(mixes),
            prior=torch.tensor(prior, device=device).view(shape),
            static=torch.tensor(static, device=device).view(shape),
            routed=_some([mix.routed for mix in mixes], device),
            fused=torch.tensor([mix.gate == "fusion" for mix in mixes], device=device),
            own=_own(mixes, packed, device),
            weight_sum=torch.zeros(shape, device=device),
            any_routed=any(mix.routed for mix in mixes),
            any_fused=any(mix.gate == "fusion" and mix.experts for mix in mixes),
        )

    def select(self, rows: Sequence[int]) -> "BatchPlan":
        """The plan of some of the prompts, their collected weights included."""
        index = torch.tensor(list(rows), device=self.prior.device)  # (B',)
        mixes = tuple(self.mixes[row] for row in rows)
        return BatchPlan(
            packed=self.packed,
            mixes=mixes,
            prior=self.prior[index],
            static=self.static[index],
            routed=_some([mix.routed for mix in mixes], index.device),
            fused=self.fused[index],
            own=_own(mixes, self.packed, index.device),
            weight_sum=self.weight_sum[index],
            num_weights=self.num_weights,
            any_routed=any(mix.routed for mix in mixes),
            any_fused=any(mix.gate == "fusion" and mix.experts for mix in mixes),
        )

    def static_columns(self, columns: Columns) -> torch.Tensor:
        """α with all scores 0, one value per packed column: (B, 1, S) float32."""
        if columns not in self._by_columns:
            self._by_columns[columns] = self.static[:, None, columns.expert]
        return self._by_columns[columns]

    def own_columns(self, columns: Columns) -> torch.Tensor | None:
        """Which packed columns are the prompt's own: (B, 1, S) bool; None: all of them."""
        if self.own is None:
            return None
        if columns not in self._own_by_columns:
            self._own_by_columns[columns] = self.own[:, None, columns.expert]
        return self._own_by_columns[columns]

    def record(self, alpha: torch.Tensor | None) -> None:
        """Counts one linear's α (B, T, P) at the last position; None: all its scores are 0."""
        if self.counting and self.any_routed:
            self.weight_sum += self.static if alpha is None else alpha[:, -1].detach()
            self.num_weights += 1

    def report(self) -> list[tuple[float, ...]]:
        """Per prompt, the mean gate weight of each of its K experts (inactive ones: 0)."""
        if not (self.any_routed and self.num_weights):
            return [tuple(mix.static_weights()) for mix in self.mixes]
        place = {ref: p for p, ref in enumerate(self.packed.experts)}
        means = (self.weight_sum / self.num_weights).tolist()
        return [
            tuple(row[place[ref]] for ref in mix.experts)
            if mix.routed
            else tuple(mix.static_weights())
            for mix, row in zip(self.mixes, means, strict=True)
        ]


def _some(flags: list[bool], device: torch.device) -> torch.Tensor | None:
    """(B,) bool, or None when every flag is set: the layers then skip the choice."""
    return None if all(flags) else torch.tensor(flags, device=device)


def _own(mixes: Sequence[Mix], packed: Packed, device: torch.device) -> torch.Tensor | None:
    """(B, P) bool, the active experts of each prompt, or None when each has them all."""
    active = [{mix.experts[i] for i in mix.active()} for mix in mixes]
    rows = [[ref in mine for ref in packed.experts] for mine in active]
    return None if all(map(all, rows)) else torch.tensor(rows, device=device)
