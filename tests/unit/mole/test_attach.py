"""Which linears are replaced, and how they are named."""

import pytest
from torch import nn

from ramole_core.errors import ConfigError
from ramole_core.mole.attach import attach, target_shapes
from ramole_core.mole.layer import MoleLinear

from .tiny import CONFIGS, tiny_model


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_linear_but_the_output_embedding_is_a_target(kind):
    model = tiny_model(kind)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    shapes = target_shapes(model)
    assert set(linears) - set(shapes) == {"lm_head"}
    assert shapes == {n: tuple(linears[n].weight.shape) for n in shapes}
    mole = attach(model)
    assert mole.targets == shapes
    assert sorted(name for group in mole.groups for name in group) == sorted(shapes)
    assert all(isinstance(model.get_submodule(name), MoleLinear) for name in shapes)
    assert type(model.lm_head) is nn.Linear
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_names_are_the_unwrapped_models():
    assert "model.layers.0.self_attn.q_proj" in target_shapes(tiny_model("llama"))
    assert "gpt_neox.layers.1.attention.query_key_value" in target_shapes(tiny_model("gptneox"))


def test_a_wrapped_linear_still_shows_its_sides():
    model = tiny_model()
    before = model.model.layers[0].mlp.up_proj
    attach(model)
    after = model.model.layers[0].mlp.up_proj
    assert after.weight is before.weight
    assert after.bias is before.bias
    assert (after.in_features, after.out_features) == (32, 48)


def test_a_model_without_linears_is_refused():
    with pytest.raises(ConfigError, match="RAMOLE_MODEL"):
        attach(nn.Sequential(nn.Embedding(3, 4)))


class Router(nn.Linear):
    """As the routers of expert models: a linear by its class alone."""

    def forward(self, x):
        scores = super().forward(x)
        return scores.softmax(-1), scores


class OwnForward(nn.Linear):
    """As Falcon's linears."""

    def forward(self, x):
        return x @ self.weight.T


def test_a_linear_is_what_acts_as_one():
    model = nn.Sequential(nn.Linear(4, 3), Router(3, 2), OwnForward(3, 5, bias=False))
    assert target_shapes(model) == {"0": (3, 4), "2": (5, 3)}
    assert attach(model).groups == (("0",), ("2",)), "it cannot be run, so nothing is shared"
    assert type(model[1]) is Router
