"""The base model with all that a router's training needs of it: layers, bank, tokens."""

import os
from dataclasses import dataclass

import torch

from ramole_core.adapters.cache import AdapterCache
from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.model import LoadedBase, load_base
from ramole_core.errors import ConfigError, PromptError
from ramole_core.mole.attach import MoleModel, attach
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.router_examples import Example
from worker.train.context import TrainContext
from worker.train.examples import Line
from worker.train.records import bad_line


@dataclass(frozen=True, eq=False)
class Workbench:
    """A base model under its mixture layers, and a bank over the store's adapters."""

    base: LoadedBase
    mole: MoleModel
    bank: AdapterBank

    @classmethod
    def open(cls, context: TrainContext) -> "Workbench":
        """Loads RAMOLE_MODEL. Raises ConfigError, also when it is not the store's base model."""
        settings = context.settings
        torch.set_num_threads(settings.torch_threads or len(os.sched_getaffinity(0)))
        base = load_base(settings)
        found = base.base_info()
        if found.fingerprint != context.base.fingerprint:
            raise ConfigError(
                f"this store belongs to the base model {context.base.name!r} and RAMOLE_MODEL is "
                f"{found.name!r} or has other shapes: set RAMOLE_MODEL to that model"
            )
        mole = attach(base.model)
        cache = AdapterCache(context.store, settings.home / "cache" / "adapters")
        bank = AdapterBank(
            base.targets, settings.bank_size, cache, base.device, base.dtype, mole.groups
        )
        return cls(base, mole, bank)

    def example(self, line: Line, own: AdapterRef) -> Example:
        """The line's tokens, as inference would see the prompt. Raises InvalidInputError."""
        base = self.base
        try:
            prompt = base.codec.encode_prompt(line.example.prompt)
            target = base.codec.encode_target(line.example.target)
        except PromptError as e:
            raise bad_line(line.number, str(e)) from e
        num_tokens = len(prompt) + len(target)
        if not prompt or not target:
            raise bad_line(line.number, "the prompt or the target has no tokens")
        if num_tokens > base.context_tokens:
            raise bad_line(
                line.number,
                f"prompt and target have {num_tokens} tokens, the base model's context is "
                f"{base.context_tokens}; shorten them",
            )
        if max(*prompt, *target) >= base.num_embeddings:
            raise bad_line(line.number, "a token that the base model does not know")
        return Example(tuple(prompt), tuple(target), own)
