"""`adapter_config.json` as PEFT 0.21 writes it, read without PEFT and without torch.

A key is accepted when it is known and harmless, or when its value is inert (null, false, empty).
Everything else is refused by name: what we do not understand could change the answers. Nothing in
the file is ever imported, downloaded or evaluated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ramole_core.adapters.strict_json import DuplicateKeyError, parse_strict
from ramole_core.errors import AdapterRefusedError

CONFIG_FILE: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 4 << 20
MAX_PATTERNS: Final = 1024
MAX_PATTERNS_CHARS: Final = 64 << 10  # of one pattern object, all keys together
MAX_MODULES: Final = 4096
MAX_LAYERS: Final = 1024
MAX_LAYER_PATTERNS: Final = 16
MAX_NAME_CHARS: Final = 500
MAX_ALPHA: Final = 1e6

# What is read nowhere at inference: who made it, how it began, how it was trained.
_IGNORED: Final = frozenset(
    {
        "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
        "lora_dropout", "fan_in_fan_out", "qalora_group_size", "megatron_core", "eva_config",
        "loftq_config", "corda_config", "lora_ga_config", "ensure_weight_tying",
    }
)  # fmt: skip
_READ: Final = frozenset(
    {
        "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "bias", "init_lora_weights", "auto_mapping", "runtime_config",
    }
)  # fmt: skip
_REASONS: Final = {
    "use_dora": "dora",
    "lora_bias": "bias",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable_tokens",
    "layer_replication": "layer_replication",
    "trust_remote_code": "remote_code",
}
_HARMLESS_INITS: Final = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class LoraConfigView:
    """The part of the config that decides what the weights mean."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: dict[str, int]  # regex of a target's last parts -> rank; the first match counts
    alpha_pattern: dict[str, float]
    target_modules: tuple[str, ...] | str  # str: a regex, or 'all-linear'
    exclude_modules: tuple[str, ...] | str | None
    layers_to_transform: tuple[int, ...]  # empty: all
    layers_pattern: tuple[str, ...]
    base_name: str | None

    def scaling(self, rank: int, alpha: float) -> float:
        """What B @ A is multiplied by (LoRA, section 4.1; rsLoRA, arXiv 2312.03732)."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_config(path: Path) -> LoraConfigView:
    """Reads the file. Raises AdapterRefusedError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)  # whatever size the file claims to have
    except OSError as e:
        raise AdapterRefusedError("unreadable", f"{path.name}: {e.strerror or e}") from e
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterRefusedError("too_large", f"{path.name} is over {MAX_CONFIG_BYTES} bytes")
    return parse_config(data)


def parse_config(data: bytes) -> LoraConfigView:
    """Checks every key of the JSON text. Raises AdapterRefusedError, nothing else."""
    try:
        table = parse_strict(data)
    except DuplicateKeyError as e:
        raise AdapterRefusedError("duplicate_key", f"{CONFIG_FILE}: {e}") from e
    except ValueError as e:
        raise AdapterRefusedError("bad_json", f"{CONFIG_FILE}: not JSON: {e}") from e
    if not isinstance(table, dict):
        raise AdapterRefusedError("bad_json", f"{CONFIG_FILE}: not a JSON object")
    if table.get("peft_type") != "LORA":
        shown = str(table.get("peft_type"))[:40]
        raise AdapterRefusedError("not_lora", f"peft_type is {shown!r}: only LORA is supported")
    for key, value in table.items():
        _check_key(key, value)
    return _view(table)


def _check_key(key: str, value: Any) -> None:
    if key in _IGNORED or _inert(value):
        return
    if key == "bias":
        if value != "none":
            raise _refused("bias", f"bias is {value!r:.40}: train with bias='none'")
    elif key == "init_lora_weights":
        _check_init(value)
    elif key == "auto_mapping":
        _check_auto_mapping(value)
    elif key not in _READ or (key == "runtime_config" and not _inert_table(value)):
        reason = _REASONS.get(key, "unsupported_option")
        raise _refused(reason, f"{key[:80]!r} is {value!r:.60}: not supported, only plain LoRA is")


def _inert(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _inert_table(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_inert, value.values()))


def _check_init(value: Any) -> None:
    """Inits that change the base weights leave an adapter that fits only that changed base."""
    name = value.lower() if isinstance(value, str) else None  # PEFT compares so, too
    if value is not True and name not in _HARMLESS_INITS:
        raise _refused(
            "init_changes_base",
            f"init_lora_weights is {value!r:.40}: it may change the base weights; save with "
            "path_initial_model_for_weight_conversion to get a plain LoRA",
        )


def _check_auto_mapping(value: Any) -> None:
    """PEFT writes the model's class here when no task_type was given; we import nothing from it."""
    known = {"base_model_class", "parent_library", "unsloth_fixed"}
    ours = isinstance(value, dict) and value.keys() <= known
    ours = ours and type(value.get("unsloth_fixed", True)) is bool
    library = str(value.get("parent_library", "")) if ours else ""
    if not ours or not library.startswith("transformers.models."):
        raise _refused("auto_mapping", "auto_mapping names code outside transformers: remove it")


def _view(table: dict[str, Any]) -> LoraConfigView:
    targets = _modules(table, "target_modules")
    layers = table.get("layers_to_transform")
    if targets is None:  # PEFT would take its own list for the model's type
        raise _refused("bad_config", "target_modules is missing: name the adapted linears")
    name = table.get("base_model_name_or_path")
    view = LoraConfigView(
        r=_rank("r", table.get("r")),
        lora_alpha=_alpha("lora_alpha", table.get("lora_alpha", 8)),
        use_rslora=_flag(table, "use_rslora"),
        rank_pattern=_patterns(table, "rank_pattern", _rank),
        alpha_pattern=_patterns(table, "alpha_pattern", _alpha),
        target_modules=targets,
        exclude_modules=_modules(table, "exclude_modules") or None,
        layers_to_transform=_layers(layers),
        layers_pattern=_layer_names(table.get("layers_pattern")),
        base_name=name if isinstance(name, str) and name else None,
    )
    if isinstance(targets, str) and (view.layers_to_transform or view.layers_pattern):
        raise _refused("bad_config", "layers_to_transform needs target_modules to be a list")
    return view


def _rank(key: str, value: Any) -> int:
    if type(value) not in (int, float) or not 1 <= value <= 1 << 20 or value != int(value):
        raise _refused(
            "bad_config", f"{key[:80]} is {value!r:.40}: a rank is a whole number from 1"
        )
    return int(value)


def _alpha(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < abs(value) <= MAX_ALPHA:
        raise _refused(
            "bad_config",
            f"{key[:80]} is {value!r:.40}: alpha is a number up to {MAX_ALPHA:g}, not 0",
        )
    return float(value)


def _flag(table: dict[str, Any], key: str) -> bool:
    value = table.get(key)
    if value not in (None, True, False) or type(value) in (int, float):
        raise _refused("bad_config", f"{key} is {value!r:.40}: use true or false")
    return bool(value)


def _patterns(table: dict[str, Any], key: str, read: Callable[[str, Any], Any]) -> dict[str, Any]:
    value = table.get(key) or {}
    if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
        raise _refused("bad_config", f"{key}: an object of at most {MAX_PATTERNS} patterns")
    if sum(map(len, value)) > MAX_PATTERNS_CHARS:
        raise _refused("bad_config", f"{key}: over {MAX_PATTERNS_CHARS} characters of patterns")
    return {pattern: read(f"{key}[{pattern!r}]", number) for pattern, number in value.items()}


def _modules(table: dict[str, Any], key: str) -> tuple[str, ...] | str | None:
    value = table.get(key)
    if value is None or isinstance(value, str):
        return value
    if not _names(value, MAX_MODULES):
        raise _refused(
            "bad_config",
            f"{key}: a list of at most {MAX_MODULES} module names of at most {MAX_NAME_CHARS} "
            "characters, or one regular expression",
        )
    return tuple(value)


def _layers(value: Any) -> tuple[int, ...]:
    layers = [value] if type(value) is int else value
    if layers is not None and not _list_of(layers, int, MAX_LAYERS):
        raise _refused(
            "bad_config", f"layers_to_transform: a layer number or a list of at most {MAX_LAYERS}"
        )
    return tuple(layers or ())


def _layer_names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) and value else value or []
    plain = _names(names, MAX_LAYER_PATTERNS) and all(
        n.replace("_", "").replace(".", "").isalnum() for n in names
    )
    if not plain:
        raise _refused(
            "bad_config",
            f"layers_pattern: at most {MAX_LAYER_PATTERNS} names made of letters, digits, '_' "
            f"and '.', of at most {MAX_NAME_CHARS} characters",
        )
    return tuple(names)


def _names(value: Any, most: int) -> bool:
    return _list_of(value, str, most) and all(len(name) <= MAX_NAME_CHARS for name in value)


def _list_of(value: Any, kind: type, most: int) -> bool:
    short = isinstance(value, list) and len(value) <= most
    return short and all(type(item) is kind for item in value)


def _refused(reason: str, message: str) -> AdapterRefusedError:
    return AdapterRefusedError(reason, f"{CONFIG_FILE}: {message}")
