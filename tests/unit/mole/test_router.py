"""Router files."""

import pytest
import torch

from ramole_core.errors import InvalidInputError
from ramole_core.mole.router import RouterWeights, random_router

TARGETS = {"model.layers.0.q_proj": (6, 5), "model.layers.0.o_proj": (5, 6)}


def test_a_router_is_read_as_it_was_written(tmp_path):
    router = random_router(TARGETS, 3, torch.Generator().manual_seed(1))
    router.save(tmp_path / "r")
    read = RouterWeights.load(tmp_path / "r")
    assert read.card == router.card
    assert read.pairs.keys() == router.pairs.keys() == TARGETS.keys()
    for name, (a, b) in router.pairs.items():
        assert (a.shape, b.shape) == ((3, TARGETS[name][1]), (TARGETS[name][0], 3))
        assert torch.equal(read.pairs[name][0], a)
        assert torch.equal(read.pairs[name][1], b)


def test_what_is_not_a_router_is_refused(tmp_path):
    files = random_router(TARGETS, 3, torch.Generator()).to_files()
    for broken in ({"router.json": b"{}"}, {"router.safetensors": b"no"}, {"router.json": b"["}):
        with pytest.raises(InvalidInputError, match="not a router"):
            RouterWeights.from_files(files | broken)
    with pytest.raises(InvalidInputError, match="not a router"):
        RouterWeights.load(tmp_path)
