"""Whole files that say what no adapter may: tensors and configs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.adapters_corpus import CONFIG, UNSLOTH_MAPPING, edit_config
from tests.bad_cases import b_name, bad, config_case, edit_tensors, first_name, tensor_case


# what the tensors are
def _rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def _set(value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors[first_name(tensors)].view(-1)[3:4].fill_(value)


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t().contiguous()


tensor_case("path_in_a_name", "unknown_target", _rename("model.layers", "../../../etc/passwd"))
tensor_case("unknown_layer", "unknown_target", _rename("layers.1.", "layers.99."))
tensor_case("not_lora_names", "unknown_tensor", _rename("lora_A", "weight"))
tensor_case("adapter_name_inside", "unknown_tensor", _rename(".weight", ".default.weight"))
tensor_case(
    "embedding_too",
    "unknown_tensor",
    lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 8)}),
)
tensor_case(
    "whole_module_too",
    "unknown_tensor",
    lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(4, 4)}),
)
tensor_case("missing_b", "missing_tensor", lambda t: t.pop(b_name(t)))
tensor_case("missing_a", "missing_tensor", lambda t: t.pop(first_name(t)))
tensor_case(
    "wrong_shape",
    "wrong_shape",
    lambda t: t.update({first_name(t): torch.ones(2, t[first_name(t)].shape[1] + 1)}),
)
tensor_case(
    "three_dimensions",
    "wrong_shape",
    lambda t: t.update({first_name(t): t[first_name(t)][None].clone()}),
)
tensor_case("nan", "not_finite", _set(float("nan")))
tensor_case("infinity", "not_finite", _set(float("inf")))
tensor_case("huge_value", "too_large_values", _set(1e30))
tensor_case("minus_infinity", "not_finite", _set(-float("inf")))
tensor_case(
    "huge_norm",
    "too_large_values",
    lambda t: [t[n].fill_(6e4) for n in (first_name(t), b_name(t))],
)
tensor_case(
    "transposed", "wrong_shape", lambda t: t.update({first_name(t): _turned(t[first_name(t)])})
)
tensor_case("name_with_a_zero_width_space", "unknown_target", _rename("q_proj", "q_proj\u200b"))
tensor_case("name_of_other_letters", "unknown_target", _rename("q_proj", "q_\u0440roj"))
tensor_case("name_turned_around", "unknown_target", _rename("q_proj", "\u202eq_proj"))
tensor_case("name_that_clears_the_screen", "unknown_target", _rename("q_proj", "\x1b[2J\n"))
tensor_case("name_very_long", "unknown_target", _rename("q_proj", "q" * 50_000))
tensor_case("name_without_target", "unknown_tensor", lambda t: t.update({"": torch.ones(1)}))
tensor_case("all_a_zero", "no_effect", lambda t: [t[n].zero_() for n in t if "lora_A" in n])
tensor_case("all_b_zero", "no_effect", lambda t: [t[n].zero_() for n in t if "lora_B" in n])


# the config
@bad("config_not_json", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text("{'r': 8}")


@bad("config_not_utf8", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b'{"peft_type": "LORA\xff"}')


@bad("config_a_list", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text("[1]")


@bad("config_nested_deeply", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text('{"a":' * 100_000)


@bad("config_key_twice", "duplicate_key")
def _(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("{", '{"r": 4,', 1))


@bad("config_huge", "too_large")
def _(folder: Path) -> None:
    edit_config(folder, base_model_name_or_path="x" * (5 << 20))


def _config_text(name: str, reason: str, edit: Callable[[str], str | bytes]) -> None:
    """The config's text is spoilt."""

    @bad(name, reason)
    def _(folder: Path) -> None:
        spoilt = edit((folder / CONFIG).read_text())
        data = spoilt.encode() if isinstance(spoilt, str) else spoilt
        (folder / CONFIG).write_bytes(data)


_config_text("config_empty", "bad_json", lambda text: "")
_config_text("config_behind_a_mark", "bad_json", lambda text: "\ufeff" + text)
_config_text("config_in_utf16", "bad_json", lambda text: text.encode("utf-16"))
_config_text("config_twice", "bad_json", lambda text: text + text)
_config_text("config_of_zeros", "bad_json", lambda text: bytes(1000))
_config_text(
    "inner_key_twice", "duplicate_key", lambda text: text.replace("{", '{"x":{"a":1,"a":2},', 1)
)
_config_text("lone_surrogate", "bad_json", lambda text: text.replace("{", r'{"x":"\ud800",', 1))
_config_text(
    "number_of_endless_digits",
    "bad_json",
    lambda text: text.replace("{", '{"revision":' + "1" * 5000 + ",", 1),
)
_config_text(
    "ignored_but_nested",
    "bad_json",
    lambda text: text.replace('"eva_config": null', '"eva_config": ' + "[" * 64 + "]" * 64),
)
config_case("peft_type_lower", "not_lora", peft_type="lora")
config_case("peft_type_a_list", "not_lora", peft_type=["LORA"])
config_case("peft_type_of_other_letters", "not_lora", peft_type="LORA\u200b")
config_case("dora_as_a_number", "dora", use_dora=1)
config_case("bias_lora_only", "bias", bias="lora_only")
config_case("modules_to_save_a_text", "modules_to_save", modules_to_save="lm_head")
config_case("rslora_a_text", "bad_config", use_rslora="yes")
for _key in (
    "auto_map",
    "base_model_class",
    "custom_module",
    "__reduce__",
    "__class__",
    "\x1b[2J\n",
):
    config_case(f"key_{_key!a}", "unsupported_option", **{_key: "os.system"})
config_case("init_names_code", "init_changes_base", init_lora_weights="os.system('id')")
config_case("auto_mapping_a_text", "auto_mapping", auto_mapping="transformers.models.x")
config_case("rank_bomb", "bad_config", r=10**9)
config_case("rank_of_400_digits", "bad_config", r=10**400)
config_case("rank_true", "bad_config", r=True)
config_case("rank_negative", "bad_config", r=-2)
config_case("rank_up_to_the_limit_of_configs", "rank_mismatch", r=1 << 20)
config_case("rank_pattern_bomb", "bad_config", rank_pattern={"q_proj": 10**9})
config_case("rank_pattern_a_list", "bad_config", rank_pattern=[["q_proj", 2]])
config_case(
    "rank_pattern_explodes",
    "unsafe_pattern",
    rank_pattern={f"{'(.*)*' * 199}!{n}": 2 for n in range(60)},
)
config_case(
    "alpha_pattern_looks_back", "unsafe_pattern", alpha_pattern={"(?<=q)_proj": 2, "v_proj": 2}
)
config_case("alpha_huge", "bad_config", lora_alpha=1.1e6)
config_case("alpha_a_list", "bad_config", lora_alpha=[8])
config_case("layer_pattern_a_regex", "bad_config", layers_to_transform=[0], layers_pattern="(a+)+")
config_case("layers_of_texts", "bad_config", layers_to_transform=["0"])
config_case("not_lora", "not_lora", peft_type="IA3")
config_case("peft_type_missing", "not_lora", peft_type=...)
config_case("dora", "dora", use_dora=True)
config_case("bias", "bias", bias="all")
config_case("lora_bias", "bias", lora_bias=True)
config_case("modules_to_save", "modules_to_save", modules_to_save=["lm_head"])
config_case("trainable_tokens", "trainable_tokens", trainable_token_indices=[1, 2])
config_case("layer_replication", "layer_replication", layer_replication=[[0, 1], [0, 2]])
config_case("remote_code", "remote_code", trust_remote_code=True)
config_case(
    "auto_mapping", "auto_mapping", auto_mapping={"parent_library": "os", "base_model_class": "x"}
)
config_case(
    "auto_mapping_of_remote_code",
    "auto_mapping",
    auto_mapping=UNSLOTH_MAPPING | {"parent_library": "transformers_modules.x.modeling"},
)
config_case(
    "auto_mapping_fixed_by_text",
    "auto_mapping",
    auto_mapping=UNSLOTH_MAPPING | {"unsloth_fixed": "os.system"},
)
config_case("runtime_set", "unsupported_option", runtime_config={"ephemeral_gpu_offload": True})
config_case("unknown_key", "unsupported_option", use_quantum_lora=True)
config_case("activated_lora", "unsupported_option", alora_invocation_tokens=[1, 2])
config_case("megatron", "unsupported_option", megatron_config={"a": 1})
config_case("target_parameters", "unsupported_option", target_parameters=["experts.w"])
config_case("pissa", "init_changes_base", init_lora_weights="pissa_niter_4")
config_case("olora", "init_changes_base", init_lora_weights="olora")
config_case("rank_zero", "bad_config", r=0)
config_case("rank_a_text", "bad_config", r="8")
config_case("rank_missing", "bad_config", r=...)
config_case("rank_a_fraction", "bad_config", r=2.5)
config_case("targets_null", "bad_config", target_modules=None)
config_case("targets_missing", "bad_config", target_modules=...)
config_case("alpha_zero", "bad_config", lora_alpha=0)
config_case("targets_a_number", "bad_config", target_modules=7)
config_case("rank_mismatch", "rank_mismatch", r=3)
config_case("rank_pattern_mismatch", "rank_mismatch", rank_pattern={"v_proj": 5})
config_case("target_mismatch", "target_mismatch", target_modules=["q_proj"])
config_case("excluded_but_there", "target_mismatch", exclude_modules=["v_proj"])
config_case("regex_broken", "unsafe_pattern", target_modules="((")
config_case("regex_lookahead", "unsafe_pattern", target_modules="(?=.*q_proj).*")
config_case("regex_too_long", "unsafe_pattern", target_modules=".*q_proj|" * 200)
config_case(
    "regex_explodes", "target_mismatch", target_modules=r"((([a-z_.0-9]+)+)+)+!", rank_pattern={}
)


# sizes: each of these once took minutes to years
def _many(num: int, num_chars: int) -> list[str]:
    return [f"{n:0{num_chars}d}" for n in range(num)]


config_case("too_many_targets", "bad_config", target_modules=[*_many(400_000, 6), "q_proj"])
config_case("too_many_excluded", "bad_config", exclude_modules=_many(5000, 6))
config_case("target_too_long", "bad_config", target_modules=["q_proj", "v_proj", "x" * 501])
config_case("too_many_layers", "bad_config", layers_to_transform=list(range(500_000)))
config_case(
    "too_many_layer_patterns",
    "bad_config",
    layers_to_transform=[0, 1],
    layers_pattern=[*_many(400_000, 6), "layers"],
)
config_case(
    "layer_pattern_too_long", "bad_config", layers_to_transform=[0, 1], layers_pattern=["x" * 501]
)
config_case("too_many_patterns", "bad_config", rank_pattern=dict.fromkeys(_many(1025, 6), 2))
config_case("patterns_too_long", "bad_config", alpha_pattern=dict.fromkeys(_many(1024, 65), 8.0))


@bad("config_keys_many", "duplicate_key")
def _(folder: Path) -> None:
    keys = ",".join(f'"{name}":0' for name in _many(200_000, 7))
    (folder / CONFIG).write_text(f'{{{keys},"{199_999:07d}":0}}')


@bad("config_number_infinite", "bad_json")
def _(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("{", '{"lora_dropout_old": [1e999],', 1))


@bad("rank_over_limit", "rank_too_large")
def _(folder: Path) -> None:
    """Needs a limit below 512: RAMOLE_MAX_ADAPTER_RANK is 256 by default."""
    edit_config(folder, r=512)
    edit_tensors(folder, _widen)


def _widen(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        out = (512, tensor.shape[1]) if "lora_A" in name else (tensor.shape[0], 512)
        tensors[name] = torch.full(out, 0.01)
