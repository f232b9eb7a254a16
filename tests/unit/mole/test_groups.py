"""Which linears read the same input, found by one forward."""

import pytest
import torch
from torch import nn

from ramole_core.mole.attach import attach, target_shapes
from ramole_core.mole.groups import find_groups

from .tiny import CONFIGS, tiny_model

SEPARATE = [
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
]
WANTED = {
    "gptneox": [
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ]
}


def in_layers(kind):
    prefix = "gpt_neox.layers" if kind == "gptneox" else "model.layers"
    return {
        tuple(f"{prefix}.{layer}.{name}" for name in group)
        for layer in range(2)
        for group in WANTED.get(kind, SEPARATE)
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_linears_that_read_one_input_are_together(kind):
    model = tiny_model(kind)
    groups = find_groups(model, list(target_shapes(model)))
    assert set(groups) == in_layers(kind)
    assert sorted(name for group in groups for name in group) == sorted(target_shapes(model))
    assert attach(model).groups == groups


def test_only_the_targets_are_looked_at():
    names = [f"model.layers.0.self_attn.{side}_proj" for side in "vq"]
    assert find_groups(tiny_model(), names) == (("model.layers.0.self_attn.q_proj", names[0]),)


class Reader(nn.Module):
    """Four linears, called as `forward` of a subclass says; x (1, T, 4)."""

    def __init__(self):
        super().__init__()
        for name in "abcd":
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, input_ids, use_cache):
        return self.read(torch.ones(*input_ids.shape, 4))


class Twice(Reader):
    def read(self, x):
        return self.a(x) + self.b(x) + self.c(x) + self.a(x)


class Copies(Reader):
    def read(self, x):
        return self.a(x) + self.b(x.clone()) + self.c(x.view(x.shape)) + self.d(x)


class ByKeyword(Reader):
    def read(self, x):
        return self.a(x) + self.b(x) + self.c(input=x) + self.d(input=x)


class Passing(Reader):
    """Inputs that end at once must not be taken for each other."""

    def read(self, x):
        for name in "abcd":
            self.get_submodule(name)(torch.ones(1, 2, 4))


class Failing(Reader):
    def read(self, x):
        self.a(x), self.b(x)
        raise ValueError("as models do that need more than tokens")


ALONE = {(name,) for name in "abcd"}


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (Twice(), {("b", "c"), ("a",), ("d",)}),
        (Copies(), {("a", "d"), ("b",), ("c",)}),
        (ByKeyword(), {("a", "b"), ("c",), ("d",)}),
        (Passing(), ALONE),
        (Failing(), ALONE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_surely_shared_is_alone(model, wanted):
    assert set(find_groups(model, list("abcd"))) == wanted
    assert not any(model.get_submodule(name)._forward_pre_hooks for name in "abcd")


def test_a_model_that_cannot_be_run_says_why_sharing_is_not_found(caplog):
    assert find_groups(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), ["0", "1"]) == (
        ("0",),
        ("1",),
    )
    assert "cannot be found" in caplog.text and "input_ids" in caplog.text


def test_the_model_computes_as_before():
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        find_groups(model, list(target_shapes(model)))
        assert torch.equal(model(ids).logits, before)
