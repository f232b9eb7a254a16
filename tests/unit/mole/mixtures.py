"""Banks that have everything, plans of one segment, and what comes out of both."""

import torch

from ramole_core.adapters.ref import AdapterRef
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.layer import add_term
from ramole_core.mole.plan import BatchPlan

from .tiny import DictRouters, DictSource

CPU = torch.device("cpu")
REFS = [AdapterRef(f"a{i}", 1) for i in range(6)]


def make_bank(targets, adapters, router=None, dtype=torch.float32, groups=None):
    """Every adapter is here; `router` is version r1."""
    routers = DictRouters({} if router is None else {"r1": router})
    bank = AdapterBank(targets, 16, DictSource(adapters), CPU, dtype, groups, routers)
    for ref in adapters:
        bank.acquire(ref)
    return bank


def make_plan(mixes, num_tokens, bank, refs=None):
    """All prompts in one segment, over `refs` or the experts that they need."""
    needed = [m.experts[i] for m in mixes for i in m.active()]
    router = next((m.router for m in mixes if m.routed), None)
    return BatchPlan.of_batch(mixes, num_tokens, bank.pack(refs or needed, router), CPU)


def reports(plan, mixes):
    """Per prompt, the mean weight of each of its experts at its last token."""
    if not plan.segments:
        return [tuple(mix.static_weights()) for mix in mixes]
    [segment] = plan.segments
    table = segment.weights().tolist()  # (B, P)
    found = [dict(zip(segment.packed.experts, row, strict=True)) for row in table]
    return [
        tuple(row.get(ref, 0.0) for ref in mix.experts)
        for mix, row in zip(mixes, found, strict=True)
    ]


def term(x, target, plan):
    """What the layer adds to its base linear: x (B, T, D_in) -> (B, T, D_out)."""
    [segment] = plan.segments
    width = len(segment.packed.groups[target].b[0])
    y = x.new_zeros(plan.num_rows, width)
    add_term(y, x, target, segment)
    return y.view(*x.shape[:-1], width)
