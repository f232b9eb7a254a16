"""Linears of a group share the A side of the mixture: less work, the same answer."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ramole_core.mole import layer
from ramole_core.mole.gates import Mix
from ramole_core.mole.layer import MoleLinear, PlanHolder
from ramole_core.mole.router import random_router

from .mixtures import REFS, make_bank, make_plan, reports
from .tiny import random_adapter

SIDES = {"q": (6, 5), "k": (4, 5), "v": (3, 5), "o": (5, 6)}
READERS = ("q", "k", "v")


class Block(nn.Module):
    """q, k and v read one tensor, or copies of it; `order` is that of the calls."""

    def __init__(self, order=("q", "k", "v", "o")):
        super().__init__()
        self.holder, self.order = PlanHolder(), order
        generator = torch.Generator().manual_seed(0)
        for name, (d_out, d_in) in SIDES.items():
            base = nn.Linear(d_in, d_out, bias=False)
            base.weight.data = torch.randn(d_out, d_in, generator=generator)
            self.add_module(name, MoleLinear(base, name, self.holder))

    @torch.inference_mode()
    def outputs(self, x, plan, read=lambda x: x):
        """Outputs by linear; `o` reads what q gives."""
        self.holder.plan, found = plan, {}
        for name in self.order:
            found[name] = self.get_submodule(name)(found["q"] if name == "o" else read(x))
        return found


@pytest.fixture
def products(monkeypatch):
    """How often the columns of a group were computed, by the group's linears."""
    computed, mixed_columns = [], layer.mixed_columns

    def counted(x, group, segment):
        computed.append(group.targets)
        return mixed_columns(x, group, segment)

    monkeypatch.setattr(layer, "mixed_columns", counted)
    return computed


def shared_case(groups):
    """Three prompts of two tokens: routed, averaged and with a given weight."""
    router = random_router(
        {n: SIDES[n] for n in ("q", "k", "o")}, 2, torch.Generator().manual_seed(3)
    )
    adapters = {
        REFS[0]: random_adapter(SIDES, 2, 0, scale=1.0),
        REFS[1]: random_adapter({n: SIDES[n] for n in ("k", "o")}, 3, 1, scale=1.0),
    }
    mixes = [
        Mix("mole", tuple(REFS[:2]), (0.5, 0.52), (), "r1"),
        Mix("fusion", tuple(REFS[:2])),
        Mix("weights", (REFS[1],), (), (0.7,)),
    ]
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(4))
    plan = make_plan(mixes, 2, make_bank(SIDES, adapters, router, groups=groups))
    return SimpleNamespace(x=x, plan=plan, mixes=mixes)


def test_what_is_shared_in_a_group_is_computed_once_and_changes_nothing(products):
    block = Block()
    one, other = (shared_case([READERS, ("o",)]) for _ in range(2))
    together = block.outputs(one.x, one.plan)
    assert products == [READERS, ("o",)]
    apart = block.outputs(other.x, other.plan, read=torch.clone)
    assert products[2:] == [READERS] * 3 + [("o",)], "nothing may be shared between copies"
    for name in SIDES:
        assert torch.equal(together[name], apart[name])
    assert reports(one.plan, one.mixes) == reports(other.plan, other.mixes)


@pytest.mark.parametrize("order", [("q", "o", "k", "v"), ("q", "k", "o", "v")])
def test_another_group_may_come_between_those_that_share(order, products):
    """As where attention and MLP read the same norm."""
    one, other = (shared_case([READERS, ("o",)]) for _ in range(2))
    wanted = Block().outputs(one.x, one.plan)
    products.clear()
    found = Block(order).outputs(other.x, other.plan)
    assert products == [READERS, ("o",)]
    for name in SIDES:
        assert torch.equal(found[name], wanted[name])
    assert reports(one.plan, one.mixes) == reports(other.plan, other.mixes)


@pytest.mark.parametrize("groups", [None, [("q", "v"), ("k",), ("o",)]])
def test_linears_of_different_groups_never_share(groups):
    """The grouping changes the work only, whatever tensors the linears are handed."""
    one, other = shared_case([READERS, ("o",)]), shared_case(groups)
    wanted, found = Block().outputs(one.x, one.plan), Block().outputs(other.x, other.plan)
    for name in SIDES:
        torch.testing.assert_close(found[name], wanted[name])
    for row, other_row in zip(
        reports(one.plan, one.mixes), reports(other.plan, other.mixes), strict=True
    ):
        assert row == pytest.approx(other_row, abs=1e-6)


def test_an_input_is_not_held_longer_than_its_readers_need_it():
    case = shared_case([READERS, ("o",)])
    Block().outputs(case.x, case.plan)
    assert [segment.shared for segment in case.plan.segments] == [{}]
