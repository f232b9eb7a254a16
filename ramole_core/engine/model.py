"""Loads the base model: any Hugging Face causal LM, from a folder or the hub, or the built-in zoo.

No code from a model repository is ever run. Whatever goes wrong becomes a ConfigError that names
the variable to set. Recurrent models are refused: padding and chunks would change their state.
Of a model's generation settings only the end-of-text tokens count; a warning names the others.
"""

import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from ramole_core.adapters.base_info import BaseInfo
from ramole_core.engine.device import choose_device
from ramole_core.engine.request import GenerationRequest
from ramole_core.engine.tokens import TextCodec
from ramole_core.errors import ConfigError, PromptError
from ramole_core.mole.attach import target_shapes
from ramole_core.settings import Settings

ZOO_NAME: Final = "ramole-zoo"
NO_LIMIT: Final = 1 << 30  # tokenizers without a limit say 10^30
IGNORED_SETTINGS: Final = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
    "top_k",
    "typical_p",
)

ADAPTER_AS_BASE: Final = (
    "RAMOLE_MODEL={!r}: this is an adapter, not a base model; merge it into its base model, or "
    "set RAMOLE_MODEL to that and upload it"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """The unwrapped base model and what the engine must know of it."""

    name: str
    aliases: tuple[str, ...]
    model: nn.Module
    codec: TextCodec
    device: torch.device
    dtype: torch.dtype
    reason: str  # why this device and dtype, for the log
    context_tokens: int
    eos_ids: frozenset[int]
    targets: dict[str, tuple[int, int]]  # target linear -> (D_out, D_in)
    forward_names: frozenset[str]  # arguments that the model's forward takes by name
    num_embeddings: int  # token ids that the model can read

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer. Not thread-safe: other threads use `codec`."""
        return self.codec.tokenizer

    def prompt_ids(self, request: GenerationRequest, limit_tokens: int) -> list[int]:
        """The request's token ids, with room below `limit_tokens` for an answer. Raises
        PromptError: the codec's, and `bad_prompt` for a token outside of the embedding, which
        would end the process on a GPU."""
        if request.prompt is not None:
            ids = self.codec.encode_prompt(request.prompt)
        else:
            ids = self.codec.encode_messages(request.messages or ())
        by_batch = limit_tokens < self.context_tokens
        limit = (
            "the worker's batch (RAMOLE_MAX_BATCH_TOKENS, 0: by its memory)"
            if by_batch
            else "a context"
        )
        ids = self.codec.fit(ids, limit_tokens, request.max_new_tokens, request.on_too_long, limit)
        if max(ids) >= self.num_embeddings:
            raise PromptError(
                "bad_prompt",
                f"the prompt has token {max(ids)}, the base model only knows the first "
                f"{self.num_embeddings}; leave out the text that its tokenizer added",
            )
        return ids

    def base_info(self) -> BaseInfo:
        """What the store keeps of this base model."""
        return BaseInfo(
            name=self.name,
            aliases=self.aliases,
            targets=self.targets,
            context_tokens=self.context_tokens,
        )


def load_base(settings: Settings) -> LoadedBase:
    """Loads model and tokenizer as `settings` say. Raises ConfigError."""
    source, name, aliases = locate(settings)
    device, dtype, reason = choose_device(settings, lambda: _hidden_width(source))
    model, tokenizer = _from_pretrained(source, dtype)
    _check_supported(model, source)
    if ignored := ignored_settings(model):
        log.warning("%s: generation settings that are not used: %s", source, ", ".join(ignored))
    try:
        model = model.to(device).eval()
    except Exception as e:  # out of memory, no such backend in this torch, …
        raise ConfigError(
            f"{source}: cannot be put on {device}: {_first_line(e)}; set RAMOLE_DEVICE, "
            "RAMOLE_DTYPE or a smaller RAMOLE_MODEL"
        ) from e
    return describe_base(model, tokenizer, name, aliases, reason)


def describe_base(
    model: nn.Module, tokenizer: Any, name: str, aliases: tuple[str, ...] = (), reason: str = ""
) -> LoadedBase:
    """A LoadedBase of a model that is in memory already (not yet attached)."""
    parameter = next(model.parameters())
    return LoadedBase(
        name=name,
        aliases=aliases,
        model=model,
        codec=TextCodec(tokenizer),
        device=parameter.device,
        dtype=parameter.dtype,
        reason=reason,
        context_tokens=context_limit(model, tokenizer),
        eos_ids=end_ids(model, tokenizer),
        targets=target_shapes(model),
        forward_names=_forward_names(model),
        num_embeddings=_num_embeddings(model),
    )


def locate(settings: Settings) -> tuple[str, str, tuple[str, ...]]:
    """(what to load, name, aliases) of the base model. Folders are named by their last part."""
    aliases = settings.model_aliases
    if not settings.model:
        from ramole_core.zoo import base_path  # package data, found only when it is used

        return str(base_path()), ZOO_NAME, aliases
    path = Path(settings.model)
    if path.exists():
        return str(path), path.resolve().name, (*aliases, settings.model)
    if settings.model.startswith((".", "/", "~")):
        raise ConfigError(f"RAMOLE_MODEL={settings.model!r}: no such folder")
    return settings.model, settings.model, aliases


def context_limit(model: Any, tokenizer: Any) -> int:
    """Positions the model was made for; the tokenizer's limit when the model names none."""
    config = model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len", "n_positions"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return min(int(getattr(tokenizer, "model_max_length", NO_LIMIT)), NO_LIMIT)


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token id that ends an answer: generation config, config and tokenizer together."""
    found: set[int] = set()
    config = model.config.get_text_config(decoder=True)
    for owner in (getattr(model, "generation_config", None), config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)


def ignored_settings(model: Any) -> list[str]:
    """`name=value` of the model's generation settings that would change answers elsewhere."""
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in IGNORED_SETTINGS}
    # 0, 1 and nothing at all are the values without an effect.
    return [f"{name}={value}" for name, value in found.items() if value and value != 1]


def _hidden_width(source: str) -> int:
    """Of the model, from its configuration; 0 when that cannot be read: loading it says why."""
    from transformers import AutoConfig  # slow to import

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        return int(config.get_text_config(decoder=True).hidden_size)
    except Exception:  # as many kinds as there are of models
        return 0


def _from_pretrained(source: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import

    if (Path(source) / "adapter_config.json").exists():
        raise ConfigError(ADAPTER_AS_BASE.format(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, ImportError, …
        raise ConfigError(
            f"{source}: cannot be loaded as a causal language model: {_first_line(e)}; set "
            "RAMOLE_MODEL to a folder or a hub id of one (its own code is never run)"
        ) from e
    return model, tokenizer


def _check_supported(model: nn.Module, source: str) -> None:
    """Raises ConfigError for models whose answers would be wrong without a word."""
    # transformers loads a hub id of an adapter together with the base model that it names
    if any(name.endswith(".base_layer") for name, _ in model.named_modules()):
        raise ConfigError(ADAPTER_AS_BASE.format(source))
    if "past_key_values" not in _forward_names(model) or getattr(model, "_is_stateful", False):
        raise ConfigError(
            f"RAMOLE_MODEL={source!r}: recurrent models and others without a key-value cache are "
            f"not supported ({type(model).__name__}); choose one whose layers all attend"
        )


def _forward_names(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _num_embeddings(model: Any) -> int:
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return NO_LIMIT if weight is None else int(weight.shape[0])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
