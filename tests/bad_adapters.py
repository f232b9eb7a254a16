"""Bad adapters, spoilt one rule at a time: what the gate must refuse, each with its reason.

`make_bad(folder, case, model)` leaves a folder that must be refused and returns the reason.
"""

import gzip
import io
import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.adapters_corpus import CONFIG, UNSLOTH_MAPPING, WEIGHTS, edit_config, make_good

Spoil = Callable[[Path], None]
_BAD: dict[str, tuple[str, Spoil]] = {}
FOLDER_ONLY = {
    "symlink", "symlink_extra", "symlink_of_config", "symlink_to_nothing", "fifo",
    "fifo_as_config", "device", "weights_are_a_folder", "config_is_a_folder", "folder_missing",
    "weights_sparse", "config_sparse",
}  # fmt: skip
CANARY = "canary"  # beside the folder: what an executed pickle would make


def make_bad(folder: Path, case: str, model: nn.Module) -> str:
    """Leaves a bad adapter in `folder`; returns the reason it must be refused for."""
    make_good(folder, "list", model)
    (folder / "README.md").unlink(missing_ok=True)
    reason, spoil = _BAD[case]
    spoil(folder)
    return reason


def _bad(name: str, reason: str) -> Callable[[Spoil], Spoil]:
    def keep(spoil: Spoil) -> Spoil:
        _BAD[name] = (reason, spoil)
        return spoil

    return keep


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrites the weights file after `edit` changed its tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_header(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the header only; `edit` changes the table, or returns the new header's text."""
    data = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + size])
    text = edit(table)
    header = (text if isinstance(text, str) else json.dumps(table)).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def _config_case(name: str, reason: str, **values: Any) -> None:
    _BAD[name] = (reason, lambda folder: edit_config(folder, **values))


def _tensor_case(name: str, reason: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    _BAD[name] = (reason, lambda folder: edit_tensors(folder, edit))


def _header_case(name: str, reason: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    _BAD[name] = (reason, lambda folder: edit_header(folder, edit))


def _first(table: dict[str, Any]) -> dict[str, Any]:
    return table[_first_name(table)]


def _first_name(table: dict[str, Any]) -> str:
    return min(name for name in table if name.endswith("lora_A.weight"))


def _b_name(table: dict[str, Any]) -> str:
    return _first_name(table).replace("lora_A", "lora_B")


# files
@_bad("pickle_beside", "pickle_file")
def _(folder: Path) -> None:
    (folder / "training_args.BIN").write_bytes(b"\x80\x04N.")


@_bad("pickle_instead", "pickle_file")
def _(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


@_bad("pickle_renamed", "pickle_file")
def _(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS)


@_bad("old_pickle_renamed", "pickle_file")
def _(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS, _use_new_zipfile_serialization=False)


class Execute:
    """Unpickled, it makes the canary."""

    def __init__(self, folder: Path) -> None:
        self._path = folder.parent / CANARY

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._path),))


for _suffix in ("bin", "pt", "pth", "pkl", "PICKLE", "ckpt", "joblib", "npz"):

    @_bad(f"pickle_as_{_suffix}", "pickle_file")
    def _(folder: Path, suffix: str = _suffix) -> None:
        (folder / f"adapter_model.{suffix}").write_bytes(pickle.dumps(Execute(folder)))


for _protocol, _reason in enumerate(("bad_header", "bad_header", *["pickle_file"] * 4)):

    @_bad(f"pickle_{_protocol}_as_weights", _reason)
    def _(folder: Path, protocol: int = _protocol) -> None:
        (folder / WEIGHTS).write_bytes(pickle.dumps(Execute(folder), protocol))

    @_bad(f"pickle_{_protocol}_as_config", "bad_json")
    def _(folder: Path, protocol: int = _protocol) -> None:
        (folder / CONFIG).write_bytes(pickle.dumps(Execute(folder), protocol))


@_bad("npz_as_weights", "pickle_file")
def _(folder: Path) -> None:
    file = io.BytesIO()
    np.savez(file, a=np.array([Execute(folder)], dtype=object))
    (folder / WEIGHTS).write_bytes(file.getvalue())


@_bad("npy_as_weights", "bad_header")
def _(folder: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([Execute(folder)], dtype=object))
    (folder / WEIGHTS).write_bytes(file.getvalue())


@_bad("gzip_as_weights", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(gzip.compress((folder / WEIGHTS).read_bytes()))


@_bad("zstd_as_weights", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x28\xb5\x2f\xfd" + (folder / WEIGHTS).read_bytes())


@_bad("gzip_as_config", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_bytes(gzip.compress(bytes(64 << 20)))


@_bad("hard_link_to_something_else", "bad_header")
def _(folder: Path) -> None:
    secret = folder.parent / f"{folder.name}.secret"
    secret.write_text("root:x:0:0\n" * 9)
    (folder / WEIGHTS).unlink()
    os.link(secret, folder / WEIGHTS)


@_bad("symlink_of_config", "symbolic_link")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to("/etc/passwd")


@_bad("symlink_to_nothing", "symbolic_link")
def _(folder: Path) -> None:
    (folder / "notes").symlink_to("/nowhere/at/all")


@_bad("fifo_as_config", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


@_bad("device", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:  # only root may
        os.mkfifo(folder / WEIGHTS)


@_bad("config_is_a_folder", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


@_bad("weights_sparse", "too_large")
def _(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 1 << 40)


@_bad("config_sparse", "too_large")
def _(folder: Path) -> None:
    os.truncate(folder / CONFIG, 1 << 40)


@_bad("weights_all_zeros", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes(1 << 19))


@_bad("symlink", "symbolic_link")
def _(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / f"{folder.name}.elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / f"{folder.name}.elsewhere")


@_bad("symlink_extra", "symbolic_link")
def _(folder: Path) -> None:
    (folder / "README.md").symlink_to("/etc/passwd")


@_bad("fifo", "not_a_regular_file")
def _(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@_bad("weights_are_a_folder", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


@_bad("folder_missing", "unreadable")
def _(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@_bad("no_weights", "missing_file")
def _(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@_bad("no_config", "missing_file")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()


# the safetensors container
@_bad("empty_weights", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


@_bad("git_lfs_pointer", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@_bad("header_longer_than_file", "bad_header")
def _(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(data)) + data[8:])


@_bad("header_of_exabytes", "bad_header")
def _(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(b"\xff" * 8 + data[8:])


@_bad("cut_in_the_middle", "bad_offsets")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])


@_bad("bytes_behind_the_end", "bad_offsets")
def _(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"#!/bin/sh\n")


_header_case("header_not_json", "bad_header", lambda table: '{"a": ')
_header_case("header_nested_deeply", "bad_header", lambda table: '{"a":' + "[" * 200_000)
_header_case("header_a_list", "bad_header", lambda table: "[]")
_header_case("header_extra_field", "bad_header", lambda table: _first(table).update(code="x"))
_header_case(
    "metadata_not_text", "bad_header", lambda table: table.update(__metadata__={"format": {}})
)
_header_case(
    "duplicate_tensor",
    "duplicate_key",
    lambda table: json.dumps(table)[:-1] + ', "' + _first_name(table) + '": {}}',
)
_header_case("unknown_dtype", "bad_dtype", lambda table: _first(table).update(dtype="I64"))
_header_case("negative_size", "bad_shape", lambda table: _first(table).update(shape=[-2, -16]))
_header_case(
    "lying_shape", "bad_offsets", lambda table: _first(table).update(shape=[1 << 40, 1 << 40])
)
_header_case(
    "overlapping_offsets",
    "bad_offsets",
    lambda table: table[_b_name(table)].update(data_offsets=_first(table)["data_offsets"]),
)
_header_case("huge_offset", "bad_offsets", lambda t: _first(t).update(data_offsets=[1, 1 << 63]))


def _announce(name: str, length: Callable[[int], int]) -> None:
    """The header's length is a lie."""

    @_bad(name, "bad_header")
    def _(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        lie = struct.pack("<Q", length(len(data)))
        (folder / WEIGHTS).write_bytes(lie + data[8:])


_announce("header_one_byte_too_long", lambda size: size - 7)
_announce("header_of_2_to_the_63", lambda size: 1 << 63)
_announce("header_of_no_bytes", lambda size: 0)
_header_case("header_behind_spaces", "bad_header", lambda t: " " * 500_000 + json.dumps(t))
_header_case("header_behind_a_mark", "bad_header", lambda t: "\ufeff" + json.dumps(t))
_header_case("header_twice", "bad_header", lambda t: json.dumps(t) * 2)
_header_case("header_of_values", "bad_header", lambda t: '{"a":[' + "[]," * 200_000 + "[]]}")
_header_case(
    "header_nested_but_closed", "bad_header", lambda t: '{"a":' + "[" * 65 + "]" * 65 + "}"
)
_header_case(
    "key_of_a_tensor_twice",
    "duplicate_key",
    lambda t: json.dumps(t).replace('"dtype": ', '"dtype": "F16", "dtype": ', 1),
)
_header_case(
    "metadata_twice",
    "duplicate_key",
    lambda t: '{"__metadata__": {}, "__metadata__": {}, ' + json.dumps(t)[1:],
)


def _move(name: str, move: Callable[[int, int], Any]) -> None:
    """The first tensor lies elsewhere."""
    _header_case(name, "bad_offsets", lambda t: _first(t).update(data_offsets=_moved(t, move)))


def _moved(table: dict[str, Any], move: Callable[[int, int], Any]) -> Any:
    return move(*_first(table)["data_offsets"])


_move("offsets_with_a_gap", lambda begin, end: [begin + 4, end + 4])
_move("offsets_reversed", lambda begin, end: [end, begin])
_move("offsets_negative", lambda begin, end: [begin - end, 0])
_move("offsets_of_fractions", lambda begin, end: [float(begin), float(end)])
_move("offsets_of_booleans", lambda begin, end: [False, True])
_move("offsets_of_three", lambda begin, end: [begin, end, end])
_move("offsets_a_text", lambda begin, end: f"{begin}-{end}")
_move("offsets_empty", lambda begin, end: [begin, begin])

for _dtype in ("F8_E4M3", "F8_E5M2", "BOOL", "C64", "F64", "U8", "", "f32", None, 32, ["F32"]):
    _header_case(f"dtype_{_dtype}", "bad_dtype", lambda t, d=_dtype: _first(t).update(dtype=d))
for _name, _shape in {
    "over_48_bits": [1 << 48], "over_64_bits": [1 << 70, 1], "of_booleans": [True, True],
    "of_fractions": [2.0, 16.0], "of_texts": ["2"], "of_many_sizes": [1] * 9, "a_number": 32,
    "missing": None,
}.items():  # fmt: skip
    _header_case(f"shape_{_name}", "bad_shape", lambda t, s=_shape: _first(t).update(shape=s))
NOTHING = {"shape": [0], "data_offsets": [0, 0]}
_header_case("shape_overflows", "bad_offsets", lambda t: _first(t).update(shape=[1 << 32] * 2))
_header_case("shape_of_nothing", "bad_offsets", lambda t: _first(t).update(shape=[0, 16]))
_header_case(
    "many_tensors",
    "unknown_tensor",
    lambda t: t.update({f"t{n}": t[_first_name(t)] | NOTHING for n in range(5000)}),
)


@_bad("no_tensors", "no_tensors")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2) + b"{}")


# what the tensors are
def _rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def _set(value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors[_first_name(tensors)].view(-1)[3:4].fill_(value)


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t().contiguous()


_tensor_case("path_in_a_name", "unknown_target", _rename("model.layers", "../../../etc/passwd"))
_tensor_case("unknown_layer", "unknown_target", _rename("layers.1.", "layers.99."))
_tensor_case("not_lora_names", "unknown_tensor", _rename("lora_A", "weight"))
_tensor_case("adapter_name_inside", "unknown_tensor", _rename(".weight", ".default.weight"))
_tensor_case(
    "embedding_too",
    "unknown_tensor",
    lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 8)}),
)
_tensor_case(
    "whole_module_too",
    "unknown_tensor",
    lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(4, 4)}),
)
_tensor_case("missing_b", "missing_tensor", lambda t: t.pop(_b_name(t)))
_tensor_case("missing_a", "missing_tensor", lambda t: t.pop(_first_name(t)))
_tensor_case(
    "wrong_shape",
    "wrong_shape",
    lambda t: t.update({_first_name(t): torch.ones(2, t[_first_name(t)].shape[1] + 1)}),
)
_tensor_case(
    "three_dimensions",
    "wrong_shape",
    lambda t: t.update({_first_name(t): t[_first_name(t)][None].clone()}),
)
_tensor_case("nan", "not_finite", _set(float("nan")))
_tensor_case("infinity", "not_finite", _set(float("inf")))
_tensor_case("huge_value", "too_large_values", _set(1e30))
_tensor_case("minus_infinity", "not_finite", _set(-float("inf")))
_tensor_case(
    "huge_norm",
    "too_large_values",
    lambda t: [t[n].fill_(6e4) for n in (_first_name(t), _b_name(t))],
)
_tensor_case(
    "transposed", "wrong_shape", lambda t: t.update({_first_name(t): _turned(t[_first_name(t)])})
)
_tensor_case("name_with_a_zero_width_space", "unknown_target", _rename("q_proj", "q_proj\u200b"))
_tensor_case("name_of_other_letters", "unknown_target", _rename("q_proj", "q_\u0440roj"))
_tensor_case("name_turned_around", "unknown_target", _rename("q_proj", "\u202eq_proj"))
_tensor_case("name_that_clears_the_screen", "unknown_target", _rename("q_proj", "\x1b[2J\n"))
_tensor_case("name_very_long", "unknown_target", _rename("q_proj", "q" * 50_000))
_tensor_case("name_without_target", "unknown_tensor", lambda t: t.update({"": torch.ones(1)}))
_tensor_case("all_a_zero", "no_effect", lambda t: [t[n].zero_() for n in t if "lora_A" in n])
_tensor_case("all_b_zero", "no_effect", lambda t: [t[n].zero_() for n in t if "lora_B" in n])


# the config
@_bad("config_not_json", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text("{'r': 8}")


@_bad("config_not_utf8", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b'{"peft_type": "LORA\xff"}')


@_bad("config_a_list", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text("[1]")


@_bad("config_nested_deeply", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text('{"a":' * 100_000)


@_bad("config_key_twice", "duplicate_key")
def _(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("{", '{"r": 4,', 1))


@_bad("config_huge", "too_large")
def _(folder: Path) -> None:
    edit_config(folder, base_model_name_or_path="x" * (5 << 20))


def _config_text(name: str, reason: str, edit: Callable[[str], str | bytes]) -> None:
    """The config's text is spoilt."""

    @_bad(name, reason)
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
_config_case("peft_type_lower", "not_lora", peft_type="lora")
_config_case("peft_type_a_list", "not_lora", peft_type=["LORA"])
_config_case("peft_type_of_other_letters", "not_lora", peft_type="LORA\u200b")
_config_case("dora_as_a_number", "dora", use_dora=1)
_config_case("bias_lora_only", "bias", bias="lora_only")
_config_case("modules_to_save_a_text", "modules_to_save", modules_to_save="lm_head")
_config_case("rslora_a_text", "bad_config", use_rslora="yes")
for _key in (
    "auto_map",
    "base_model_class",
    "custom_module",
    "__reduce__",
    "__class__",
    "\x1b[2J\n",
):
    _config_case(f"key_{_key!a}", "unsupported_option", **{_key: "os.system"})
_config_case("init_names_code", "init_changes_base", init_lora_weights="os.system('id')")
_config_case("auto_mapping_a_text", "auto_mapping", auto_mapping="transformers.models.x")
_config_case("rank_bomb", "bad_config", r=10**9)
_config_case("rank_of_400_digits", "bad_config", r=10**400)
_config_case("rank_true", "bad_config", r=True)
_config_case("rank_negative", "bad_config", r=-2)
_config_case("rank_up_to_the_limit_of_configs", "rank_mismatch", r=1 << 20)
_config_case("rank_pattern_bomb", "bad_config", rank_pattern={"q_proj": 10**9})
_config_case("rank_pattern_a_list", "bad_config", rank_pattern=[["q_proj", 2]])
_config_case(
    "rank_pattern_explodes",
    "unsafe_pattern",
    rank_pattern={f"{'(.*)*' * 199}!{n}": 2 for n in range(60)},
)
_config_case(
    "alpha_pattern_looks_back", "unsafe_pattern", alpha_pattern={"(?<=q)_proj": 2, "v_proj": 2}
)
_config_case("alpha_huge", "bad_config", lora_alpha=1e7)
_config_case("alpha_a_list", "bad_config", lora_alpha=[8])
_config_case("layer_pattern_a_regex", "bad_config", layers_to_transform=[0], layers_pattern="(a+)+")
_config_case("layers_of_texts", "bad_config", layers_to_transform=["0"])
_config_case("not_lora", "not_lora", peft_type="IA3")
_config_case("peft_type_missing", "not_lora", peft_type=...)
_config_case("dora", "dora", use_dora=True)
_config_case("bias", "bias", bias="all")
_config_case("lora_bias", "bias", lora_bias=True)
_config_case("modules_to_save", "modules_to_save", modules_to_save=["lm_head"])
_config_case("trainable_tokens", "trainable_tokens", trainable_token_indices=[1, 2])
_config_case("layer_replication", "layer_replication", layer_replication=[[0, 1], [0, 2]])
_config_case("remote_code", "remote_code", trust_remote_code=True)
_config_case(
    "auto_mapping", "auto_mapping", auto_mapping={"parent_library": "os", "base_model_class": "x"}
)
_config_case(
    "auto_mapping_of_remote_code",
    "auto_mapping",
    auto_mapping=UNSLOTH_MAPPING | {"parent_library": "transformers_modules.x.modeling"},
)
_config_case(
    "auto_mapping_fixed_by_text",
    "auto_mapping",
    auto_mapping=UNSLOTH_MAPPING | {"unsloth_fixed": "os.system"},
)
_config_case("runtime_set", "unsupported_option", runtime_config={"ephemeral_gpu_offload": True})
_config_case("unknown_key", "unsupported_option", use_quantum_lora=True)
_config_case("activated_lora", "unsupported_option", alora_invocation_tokens=[1, 2])
_config_case("megatron", "unsupported_option", megatron_config={"a": 1})
_config_case("target_parameters", "unsupported_option", target_parameters=["experts.w"])
_config_case("pissa", "init_changes_base", init_lora_weights="pissa_niter_4")
_config_case("olora", "init_changes_base", init_lora_weights="olora")
_config_case("rank_zero", "bad_config", r=0)
_config_case("rank_a_text", "bad_config", r="8")
_config_case("rank_missing", "bad_config", r=...)
_config_case("rank_a_fraction", "bad_config", r=2.5)
_config_case("targets_null", "bad_config", target_modules=None)
_config_case("targets_missing", "bad_config", target_modules=...)
_config_case("alpha_zero", "bad_config", lora_alpha=0)
_config_case("targets_a_number", "bad_config", target_modules=7)
_config_case("rank_mismatch", "rank_mismatch", r=3)
_config_case("rank_pattern_mismatch", "rank_mismatch", rank_pattern={"v_proj": 5})
_config_case("target_mismatch", "target_mismatch", target_modules=["q_proj"])
_config_case("excluded_but_there", "target_mismatch", exclude_modules=["v_proj"])
_config_case("regex_broken", "unsafe_pattern", target_modules="((")
_config_case("regex_lookahead", "unsafe_pattern", target_modules="(?=.*q_proj).*")
_config_case("regex_too_long", "unsafe_pattern", target_modules=".*q_proj|" * 200)
_config_case(
    "regex_explodes", "target_mismatch", target_modules=r"((([a-z_.0-9]+)+)+)+!", rank_pattern={}
)


# sizes: each of these once took minutes to years
def _many(num: int, num_chars: int) -> list[str]:
    return [f"{n:0{num_chars}d}" for n in range(num)]


_config_case("too_many_targets", "bad_config", target_modules=[*_many(400_000, 6), "q_proj"])
_config_case("too_many_excluded", "bad_config", exclude_modules=_many(5000, 6))
_config_case("target_too_long", "bad_config", target_modules=["q_proj", "v_proj", "x" * 501])
_config_case("too_many_layers", "bad_config", layers_to_transform=list(range(500_000)))
_config_case(
    "too_many_layer_patterns",
    "bad_config",
    layers_to_transform=[0, 1],
    layers_pattern=[*_many(400_000, 6), "layers"],
)
_config_case(
    "layer_pattern_too_long", "bad_config", layers_to_transform=[0, 1], layers_pattern=["x" * 501]
)
_config_case("too_many_patterns", "bad_config", rank_pattern=dict.fromkeys(_many(1025, 6), 2))
_config_case("patterns_too_long", "bad_config", alpha_pattern=dict.fromkeys(_many(1024, 65), 8.0))


@_bad("config_keys_many", "duplicate_key")
def _(folder: Path) -> None:
    keys = ",".join(f'"{name}":0' for name in _many(200_000, 7))
    (folder / CONFIG).write_text(f'{{{keys},"{199_999:07d}":0}}')


@_bad("config_number_infinite", "bad_json")
def _(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("{", '{"lora_dropout_old": [1e999],', 1))


@_bad("rank_over_limit", "rank_too_large")
def _(folder: Path) -> None:
    """Needs a limit below 512: RAMOLE_MAX_ADAPTER_RANK is 256 by default."""
    edit_config(folder, r=512)
    edit_tensors(folder, _widen)


def _widen(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        out = (512, tensor.shape[1]) if "lora_A" in name else (tensor.shape[0], 512)
        tensors[name] = torch.full(out, 0.01)


BAD_CASES = sorted(_BAD)

# file content -> reason
BAD_SAMPLES: dict[str, tuple[bytes, str]] = {
    "none": (b"", "num_samples"),
    "too_many": (b'"a"\n' * 1001, "num_samples"),
    "not_json": (b'"a"\nhello\n', "bad_sample"),
    "not_a_string": (b'"a"\n{"prompt": "b"}\n', "bad_sample"),
    "an_empty_line": (b'"a"\n\n"b"\n', "bad_sample"),
    "empty_text": (b'"a"\n""\n', "bad_sample"),
    "many_small_values": (b'"a"\n[' + b"[]," * 1_000_000 + b"[]]\n", "bad_sample"),
    "space_before": (b'"a"\n "b"\n', "bad_sample"),
    "line_too_long": (b'"a"\n"b"' + b" " * 1_200_002 + b"\n", "bad_sample"),
    "only_spaces": (b'"a"\n" \\t"\n', "bad_sample"),
    "not_utf8": (b'"a"\n"\xff"\n', "bad_sample"),
    "lone_surrogate": (b'"a"\n"\\ud800"\n', "bad_sample"),
    "too_long": (b'"a"\n"' + b"x" * 100_001 + b'"\n', "bad_sample"),
    "a_million_lines": (b'"a"\n' * 1_000_000, "num_samples"),
    "nothing_but_newlines": (b"\n" * (8 << 20), "num_samples"),
    "gzip": (b'"a"\n' + gzip.compress(b'"b"\n' * 1000), "bad_sample"),
    "binary": (b'"a"\n' + bytes(range(256)), "bad_sample"),
    "control_characters": (b'"a"\n"\x1b[2J"\n', "bad_sample"),
    "two_values": (b'"a"\n"b" "c"\n', "bad_sample"),
    "a_mark_before": (b'"a"\n\xef\xbb\xbf"b"\n', "bad_sample"),
}
BAD_NAMES = [
    "", ".", "..", "../up", "a/b", "a b", "-x", "é", "x" * 101, "a\n", "a\0b", "a@1", "-rf", "...",
    "/etc/passwd", "C:\\a", "~", "a*", "$(id)", "a;id", "%2e%2e", ".hidden", "_a", "x" * 1000,
    "\u202etxt.exe", "a\u200b", "\u0430dapter", "\uff41", "a\x1b[2J", "\u0661",
]  # fmt: skip
