"""Attention over flat rows: the tokens of all prompts in one row, their keys and values in slots.

Dims: N rows of a forward, n decoding rows, G prompts of a bucket with T tokens each, R slots,
W keys looked at, H heads, H_kv key-value heads, D width of a head.
Registered under `NAME` as an attention function of transformers; the models then build no masks,
hand every layer's q, k, v over, and pass `slots_step` through. Three kinds of prompts:
- decoding: one token each, all slots in one call, whatever their lengths;
- fresh: whole prompts (or their first chunks), padded to buckets of similar length, causal;
- continued: a later chunk of a long prompt, over what its slot holds.
Masks follow positions: causal, and where a layer has a sliding window, the last `window` keys.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F

from ramole_core.engine.slots import SlotCache
from ramole_core.errors import RamoleError

NAME: Final = "ramole_slots"


class AttentionError(RamoleError):
    """Raised when a model attends in a way that this function does not compute."""

    code = "unsupported_model"


@dataclass(frozen=True)
class Style:
    """What a layer does to the scores besides scaling them."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None  # (H,), a score of its own for each head

    @property
    def plain(self) -> bool:
        """torch's own fused attention computes it."""
        return self.softcap is None and self.sinks is None


@dataclass(eq=False)
class Decoding:
    """n rows of one token each."""

    rows: slice | torch.Tensor  # (n,) int64
    slots: torch.Tensor  # (n,) int64, of each row
    by_slot: torch.Tensor  # (R',) int64, place among the n of the prompt in slots 0 … R'-1; else 0
    lengths: torch.Tensor  # (R',) int64, keys of each slot, the new one included; at least 1
    width: int  # W, the largest length
    shortest: int  # the smallest length of the n
    _masks: dict[Any, torch.Tensor] = field(default_factory=dict)

    def advance(self) -> None:
        """The same rows, one token later."""
        self.lengths = self.lengths + 1
        self.width, self.shortest = self.width + 1, self.shortest + 1
        self._masks.clear()

    def first_key(self, window: int | None) -> int:
        """No row looks at a key before this one."""
        return 0 if window is None else max(0, self.shortest - window)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(R', 1, 1, W - first_key) of `dtype`: 0, or -inf for what is not attended."""
        key = (window, dtype)
        if key not in self._masks:
            first = self.first_key(window)
            keys = torch.arange(first, self.width, device=self.lengths.device)  # (W',)
            ends = self.lengths[:, None]  # (R', 1)
            hidden = keys >= ends
            if window is not None:
                hidden |= keys < ends - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=keys.device)
            self._masks[key] = mask.masked_fill_(hidden, -torch.inf)[:, None, None]
        return self._masks[key]


@dataclass(frozen=True, eq=False)
class Fresh:
    """G prompts from their first token on, T rows each; shorter ones are padded at the end."""

    rows: slice | torch.Tensor  # (G·T,) int64; padding repeats some row
    shape: tuple[int, int]  # G, T
    real: torch.Tensor | None  # places among the G·T that are no padding; None: all


@dataclass(frozen=True)
class Continued:
    """One prompt's next chunk: rows begin … end, behind `start` tokens in its slot."""

    begin: int
    end: int
    slot: int
    start: int


@dataclass(eq=False)
class AttentionStep:
    """All rows of one forward."""

    cache: SlotCache
    slots: torch.Tensor  # (N,) int64
    positions: torch.Tensor  # (N,) int64
    decoding: Decoding | None = None
    fresh: tuple[Fresh, ...] = ()
    continued: tuple[Continued, ...] = ()
    num_calls: int = 0  # layers that attended
    windows: set[int] = field(default_factory=set)  # that they named
    _cells: dict[int, torch.Tensor] = field(default_factory=dict)

    def cells(self, num_heads: int) -> torch.Tensor:
        """Where the rows' keys and values go: see SlotCache."""
        if num_heads not in self._cells:
            self._cells[num_heads] = self.cache.cells(self.slots, self.positions, num_heads)
        return self._cells[num_heads]

    def advance(self, positions: torch.Tensor) -> None:
        """The same rows, all decoding, one token later: positions (N,)."""
        assert self.decoding is not None
        self.positions = positions
        self._cells.clear()
        self.decoding.advance()


def register() -> None:
    """Makes `NAME` known to transformers."""
    from transformers import AttentionInterface  # slow to import

    AttentionInterface.register(NAME, attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    slots_step: AttentionStep | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, H, N, D), key and value (1, H_kv, N, D) -> (1, N, H, D).

    Raises AttentionError for what it does not compute.
    """
    if (
        slots_step is None
        or query.shape[0] != 1
        or attention_mask is not None
        or (position_bias is not None)
    ):
        raise AttentionError(f"{type(module).__name__} hides rows, masks or biases of its own")
    step = slots_step
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, D)
    style = Style(scaling or q.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    step.num_calls += 1
    if sliding_window is not None:
        step.windows.add(sliding_window)
    layer: Any = module.layer_idx
    keys, values = step.cache.write(layer, step.cells(k.shape[1]), k, v)
    out = q.new_empty(len(q), q.shape[1], v.shape[-1])  # (N, H, D)
    if step.decoding is not None:
        out[step.decoding.rows] = _decode(q, keys, values, step.decoding, style)
    for bucket in step.fresh:
        _attend_fresh(out, q, k, v, bucket, style)
    for chunk in step.continued:
        out[chunk.begin : chunk.end] = _attend_continued(q, keys, values, chunk, style)
    return out[None], None


def _decode(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Decoding, style: Style
) -> torch.Tensor:
    """q (N, H, D), keys and values (R, H_kv, C, D) -> (n, H, D). The heads that share keys stand
    where tokens usually do, so nothing is repeated."""
    num, first = len(rows.by_slot), rows.first_key(style.window)
    queries = q[rows.rows].index_select(0, rows.by_slot)  # (R', H, D)
    queries = queries.view(num, keys.shape[1], -1, q.shape[-1])  # (R', H_kv, H/H_kv, D)
    some_keys, some_values = (x[:num, :, first : rows.width] for x in (keys, values))
    mask = rows.mask(style.window, q.dtype)
    out = _weighted(queries, some_keys, some_values, mask, style)  # (R', H_kv, H/H_kv, D)
    return out.reshape(num, q.shape[1], -1).index_select(0, rows.slots)


def _attend_fresh(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bucket: Fresh,
    style: Style,
) -> None:
    """Writes the bucket's rows of `out` (N, H, D). Padding is behind what it could spoil."""
    num, tokens = bucket.shape
    queries, keys, values = (
        x[bucket.rows].view(num, tokens, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
    )  # (G, heads, T, D)
    mask = None
    if not style.plain or (style.window is not None and style.window < tokens):
        mask = _causal(tokens, tokens, style.window, q)
    found = _grouped(queries, keys, values, mask, style)  # (G, H, T, D)
    flat = found.transpose(1, 2).reshape(num * tokens, *out.shape[1:])
    if bucket.real is None:
        out[bucket.rows] = flat
    else:
        assert isinstance(bucket.rows, torch.Tensor)
        out[bucket.rows[bucket.real]] = flat[bucket.real]


def _attend_continued(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: Continued, style: Style
) -> torch.Tensor:
    """-> (T, H, D) of one prompt's chunk."""
    num = chunk.end - chunk.begin  # T
    total = chunk.start + num
    queries = q[chunk.begin : chunk.end].transpose(0, 1)[None]  # (1, H, T, D)
    own_keys, own_values = (x[chunk.slot, :, :total][None] for x in (keys, values))
    mask = _causal(num, total, style.window, q)
    return _grouped(queries, own_keys, own_values, mask, style)[0].transpose(0, 1)


def _causal(num: int, total: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(num, total), 0 or -inf: the last `num` of `total` tokens look at all before them."""
    queries = torch.arange(total - num, total, device=like.device)[:, None]  # (num, 1)
    keys = torch.arange(total, device=like.device)  # (total,)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = torch.zeros(num, total, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, -torch.inf)


def _grouped(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    style: Style,
) -> torch.Tensor:
    """queries (G, H, T, D), keys and values (G, H_kv, W, D), each for H/H_kv heads in a row ->
    (G, H, T, D). No mask: causal."""
    repeats = queries.shape[1] // keys.shape[1]
    if repeats > 1:
        keys, values = (x.repeat_interleave(repeats, dim=1) for x in (keys, values))
    if mask is None:
        return F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=style.scaling
        )
    return _weighted(queries, keys, values, mask, style)


def _weighted(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    style: Style,
) -> torch.Tensor:
    """softmax(cap(scaling · q kᵀ) + mask) v; with sinks the softmax has one more, empty place.

    queries (G, A, T, D), keys and values (G, A, W, D): A = H with T tokens, or A = H_kv with the
    H/H_kv heads of one token in T's place.
    """
    if style.plain:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=style.scaling
        )
    scores = (queries @ keys.transpose(2, 3)) * style.scaling  # (G, A, T, W)
    if style.softcap is not None:
        scores = torch.tanh(scores / style.softcap) * style.softcap
    scores = scores + mask
    if style.sinks is not None:
        num_heads, across = len(style.sinks), scores.shape[1]
        sinks = style.sinks.view(1, across, num_heads // across, 1)  # T's place holds heads, or
        scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1).to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)
    return weights[..., : keys.shape[2]] @ values
