"""Puts the mixture layers into a Hugging Face causal LM, and takes them out again.

Modules are replaced, methods never patched. Targets are named as the unwrapped model names them
(`model.layers.0.self_attn.q_proj`); adapters' names are never module names. The output embedding
stays as it is: published adapters do not adapt it, and the engine computes it for few positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ramole_core.errors import ConfigError
from ramole_core.mole.groups import find_groups
from ramole_core.mole.layer import MoleLinear, PlanHolder
from ramole_core.mole.plan import BatchPlan


@dataclass(frozen=True, eq=False)
class MoleModel:
    """A causal LM whose linears are mixture layers."""

    model: nn.Module
    holder: PlanHolder
    targets: dict[str, tuple[int, int]]  # target linear -> (D_out, D_in)
    groups: tuple[tuple[str, ...], ...]  # targets that read the very same input; each once

    @contextmanager
    def running(self, plan: BatchPlan | None) -> Iterator[None]:
        """The layers use `plan` inside the block; without one they are the base model."""
        self.holder.plan = plan
        try:
            yield
        finally:
            self.holder.plan = None

    def detach(self) -> nn.Module:
        """Puts the base linears back and returns the base model."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, MoleLinear):
                _replace(self.model, name, module.base)
        return self.model


def target_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear of an unwrapped model except its output embedding, by name. Subclasses whose
    forward is no linear's (routers of expert models return tuples) are left alone."""
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and _acts_as_linear(module)
    }


@torch.inference_mode()
def _acts_as_linear(linear: nn.Linear) -> bool:
    """Tries what subclasses with a forward of their own give: Falcon's are linears as well."""
    if type(linear).forward is nn.Linear.forward:
        return True
    try:
        y = linear(linear.weight.new_zeros(1, 1, linear.in_features))
    except Exception:  # whatever a foreign forward raises
        return False
    return isinstance(y, torch.Tensor) and y.shape == (1, 1, linear.out_features)


def target_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Target linear -> (D_out, D_in) of an unwrapped model."""
    return {
        name: (linear.out_features, linear.in_features)
        for name, linear in target_linears(model).items()
    }


def attach(model: nn.Module) -> MoleModel:
    """Replaces every target linear of `model`, in place; its weights are frozen, not changed.

    Raises ConfigError when the model has no linear that could be adapted.
    """
    targets = target_shapes(model)
    if not targets:
        raise ConfigError(
            f"{type(model).__name__} has no nn.Linear to adapt: choose another RAMOLE_MODEL"
        )
    model.requires_grad_(False)
    groups = find_groups(model, list(targets))
    holder = PlanHolder()
    for name, linear in target_linears(model).items():
        _replace(model, name, MoleLinear(linear, name, holder))
    return MoleModel(model, holder, targets, groups)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
