"""Switches a model to attention over slots, and makes sure that it then still is the same model.

The contract is transformers' own for foreign attention (`_supports_attention_backend`, as other
servers use it): layers hand q, k and v to a registered function and pass keyword arguments
through. A few tokens go through the model before and after the switch; where the logits differ,
or a kind of layer is not known, the model is refused rather than answered wrongly.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch

from ramole_core.engine.attention import (
    NAME,
    AttentionError,
    AttentionStep,
    Decoding,
    Fresh,
    register,
)
from ramole_core.engine.slots import SlotCache
from ramole_core.errors import ConfigError

LAYER_TYPES: Final = ("full_attention", "sliding_attention")
NUM_TOKENS: Final = 4  # of the probe
TOLERANCE: Final = {torch.float16: 5e-2, torch.bfloat16: 1.5e-1}  # others: 1e-3


@dataclass(frozen=True)
class Backend:
    """A model under attention over slots."""

    model: Any
    original: str  # the attention function that it came with
    bytes_per_token: int  # of keys and values, all layers together

    @classmethod
    @torch.inference_mode()
    def install(cls, model: Any) -> "Backend":
        """Switches `model`. Raises ConfigError, and leaves it as it was, when it cannot be."""
        _check_supported(model)
        device = next(model.parameters()).device
        ids = torch.arange(NUM_TOKENS, device=device)[None]  # (1, T)
        wanted = model(input_ids=ids, use_cache=False).logits[0, -1].float()  # (V,)
        original = str(model.config._attn_implementation)
        register()
        model.set_attn_implementation(NAME)
        try:
            found, cache = _probe(model, ids)
            _check_equal(model, found, wanted)
        except (AttentionError, TypeError) as e:
            model.set_attn_implementation(original)
            raise ConfigError(
                f"RAMOLE_MODEL: {type(model).__name__} cannot be run over a slot cache: {e}; "
                "choose another architecture"
            ) from e
        except ConfigError:
            model.set_attn_implementation(original)
            raise
        return cls(model, original, cache.num_bytes // (cache.num_slots * cache.capacity))

    def remove(self) -> None:
        """Gives the model its own attention back."""
        self.model.set_attn_implementation(self.original)


def _check_supported(model: Any) -> None:
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        raise ConfigError(
            f"RAMOLE_MODEL: {name} has attention code of its own, which transformers cannot "
            "exchange; choose an architecture that supports attention backends (Llama, Qwen, "
            "Mistral, Gemma, Phi, GPT-NeoX and most others do)"
        )
    config = model.config.get_text_config(decoder=True)
    unknown = sorted({*(getattr(config, "layer_types", None) or [])} - {*LAYER_TYPES})
    num_shared: int | None = getattr(config, "num_kv_shared_layers", None)
    if unknown or num_shared:
        what = ", ".join(unknown) or "layers that share keys and values"
        raise ConfigError(
            f"RAMOLE_MODEL: {name} has {what}, which is not supported; choose another"
        )


def _probe(model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], SlotCache]:
    """Last logits of the same tokens as a fresh prompt, and token by token in another slot."""
    cache = SlotCache()
    cache.reshape(2, NUM_TOKENS, [])
    device, row = ids.device, torch.zeros(1, dtype=torch.int64, device=ids.device)
    fresh = AttentionStep(
        cache,
        slots=row.expand(NUM_TOKENS),
        positions=torch.arange(NUM_TOKENS, device=device),
        fresh=(Fresh(slice(0, NUM_TOKENS), (1, NUM_TOKENS), None),),
    )
    found = [_last_logits(model, ids, fresh)]
    for place in range(NUM_TOKENS):
        ends = torch.tensor([1, place + 1], device=device)
        step = AttentionStep(
            cache,
            slots=row + 1,
            positions=row + place,
            decoding=Decoding(
                slice(0, 1), row + 1, torch.cat([row, row]), ends, place + 1, place + 1
            ),
        )
        found[1:] = [_last_logits(model, ids[:, place : place + 1], step)]
    config = model.config.get_text_config(decoder=True)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) and not fresh.windows:
        raise AttentionError("its sliding layers do not say how wide their window is")
    return found, cache


def _last_logits(model: Any, ids: torch.Tensor, step: AttentionStep) -> torch.Tensor:
    output = model(
        input_ids=ids, position_ids=step.positions[None], use_cache=False, slots_step=step
    )
    if not step.num_calls:
        raise AttentionError("its layers never called the attention function")
    logits: torch.Tensor = output.logits[0, -1].float()
    return logits


def _check_equal(model: Any, found: list[torch.Tensor], wanted: torch.Tensor) -> None:
    scale = wanted.abs().max().clamp(min=1e-6)
    worst = max(float((logits - wanted).abs().max() / scale) for logits in found)
    if not worst <= TOLERANCE.get(model.dtype, 1e-3):
        raise ConfigError(
            f"RAMOLE_MODEL: {type(model).__name__} answers differently over a slot cache (by "
            f"{worst:.1e} of its largest logit); choose another architecture"
        )
