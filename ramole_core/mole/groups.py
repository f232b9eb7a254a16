"""Finds the linears that read the same input (q, k, v; gate, up), by watching one forward.

Linears of a group share the A-side work of their experts: one product with all their A matrices.
Architectures need not be known: what counts is that two linears are handed the very same tensor.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)


@torch.inference_mode()
def find_groups(model: nn.Module, targets: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every target once, those that are handed the same tensor together.

    Runs two tokens through `model`. A model that cannot be run like that gets groups of one; so
    does a linear that is called more than once.
    """
    calls: list[tuple[str, torch.Tensor]] = []  # holds the inputs, so that no id is used twice

    def watch(name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments:
            calls.append((name, arguments[0]))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(watch, name))
        for name in targets
    ]
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.tensor([[0, 1]], device=device), use_cache=False)
    except Exception as e:  # whatever a foreign model raises: sharing is only faster
        log.warning("linears that share an input cannot be found: %s", e)
        calls.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return _grouped(calls, targets)


def _grouped(
    calls: Sequence[tuple[str, torch.Tensor]], targets: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    times = Counter(name for name, _ in calls)
    by_input: dict[int, list[str]] = {}
    for name, x in calls:
        if times[name] == 1:
            by_input.setdefault(id(x), []).append(name)
    seen = {name for members in by_input.values() for name in members}
    alone = [(name,) for name in targets if name not in seen]
    return (*map(tuple, by_input.values()), *alone)
