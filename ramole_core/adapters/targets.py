"""Which linears a config means, and with which rank and alpha, by PEFT's rules.

Follows `check_target_module_exists`, `_maybe_include_all_linear_layers` and `get_pattern_key` of
PEFT 0.21, with patterns matched in bounded time (patterns.py). The tensors in the file decide what
is adapted; the config must agree, because PEFT would ignore a tensor that its config does not name.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from ramole_core.adapters.config import LoraConfigView
from ramole_core.adapters.patterns import Budget, SafePattern

ALL_LINEAR: Final = "all-linear"
_OUTPUT_LAYERS: Final = ("lm_head", "embed_out", "output")  # what all-linear leaves out
_FIRST_INDEX: Final = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")

Number = TypeVar("Number", int, float)


class TargetRules:
    """Answers for one config. Every method may raise AdapterRefusedError('unsafe_pattern')."""

    def __init__(self, config: LoraConfigView) -> None:
        self._config = config
        budget = Budget()
        targets = config.target_modules
        every = isinstance(targets, str) and targets.lower() == ALL_LINEAR
        self._targets = ALL_LINEAR if every else _selector(targets, budget)
        self._excluded = _selector(config.exclude_modules, budget)
        self._ranks = _compiled(config.rank_pattern, budget)
        self._alphas = _compiled(config.alpha_pattern, budget)
        self._layers = frozenset(config.layers_to_transform)
        self._layer_patterns = [
            re.compile(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.")
            for pattern in config.layers_pattern
        ] or [_FIRST_INDEX]

    def includes(self, name: str) -> bool:
        """True when the config says that linear `name` is adapted."""
        if self._excluded is not None and _selects(self._excluded, name):
            return False
        listed = not isinstance(self._targets, SafePattern | str)
        if listed and name in self._targets:  # a full name is taken whatever its layer
            return True
        return _selects(self._targets, name) and (not listed or self._layer_included(name))

    def rank(self, name: str) -> int:
        """R of linear `name`."""
        return _first(self._ranks, self._config.rank_pattern, name, self._config.r)

    def alpha(self, name: str) -> float:
        """Alpha of linear `name`."""
        return _first(self._alphas, self._config.alpha_pattern, name, self._config.lora_alpha)

    def scaling(self, name: str) -> float:
        """What B @ A of linear `name` is multiplied by."""
        return self._config.scaling(self.rank(name), self.alpha(name))

    def _layer_included(self, name: str) -> bool:
        return not self._layers or self._layer_index(name) in self._layers

    def _layer_index(self, name: str) -> int | None:
        for expression in self._layer_patterns:
            if match := expression.match(name):
                return int(match["idx"])
        return None


def _selector(modules: tuple[str, ...] | str | None, budget: Budget) -> Any:
    """A set of names and suffixes, a pattern, or None."""
    if isinstance(modules, str):
        return SafePattern(modules, budget)
    return None if modules is None else frozenset(modules)


def _selects(selector: "SafePattern | Collection[str]", name: str) -> bool:
    if isinstance(selector, SafePattern):
        return selector.matches(name)
    if selector == ALL_LINEAR:
        return name.rpartition(".")[2] not in _OUTPUT_LAYERS
    return any(end in selector for end in _ends(name))


def _ends(name: str) -> list[str]:
    """The name and every part of it that begins after a dot."""
    return [name, *(name[i + 1 :] for i, c in enumerate(name) if c == ".")]


def _compiled(patterns: Mapping[str, Any], budget: Budget) -> dict[str, SafePattern]:
    return {text: SafePattern(text, budget) for text in patterns}


def _first(
    compiled: Mapping[str, SafePattern], values: Mapping[str, Number], name: str, default: Number
) -> Number:
    for text, pattern in compiled.items():
        if pattern.matches_suffix(name):
            return values[text]
    return values.get(name, default)
