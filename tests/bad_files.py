"""Bad files: pickles, links, devices, and containers of safetensors that lie."""

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

from tests.adapters_corpus import CONFIG, WEIGHTS
from tests.bad_cases import b_name, bad, first, first_name, header_case

FOLDER_ONLY = {
    "symlink", "symlink_extra", "symlink_of_config", "symlink_to_nothing", "fifo",
    "fifo_as_config", "device", "weights_are_a_folder", "config_is_a_folder", "folder_missing",
    "weights_sparse", "config_sparse",
}  # fmt: skip
CANARY = "canary"  # beside the folder: what an executed pickle would make


# files
@bad("pickle_beside", "pickle_file")
def _(folder: Path) -> None:
    (folder / "training_args.BIN").write_bytes(b"\x80\x04N.")


@bad("pickle_instead", "pickle_file")
def _(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


@bad("pickle_renamed", "pickle_file")
def _(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS)


@bad("old_pickle_renamed", "pickle_file")
def _(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS, _use_new_zipfile_serialization=False)


class Execute:
    """Unpickled, it makes the canary."""

    def __init__(self, folder: Path) -> None:
        self._path = folder.parent / CANARY

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._path),))


for _suffix in ("bin", "pt", "pth", "pkl", "PICKLE", "ckpt", "joblib", "dill", "npy", "npz"):

    @bad(f"pickle_as_{_suffix}", "pickle_file")
    def _(folder: Path, suffix: str = _suffix) -> None:
        (folder / f"adapter_model.{suffix}").write_bytes(pickle.dumps(Execute(folder)))


for _protocol, _reason in enumerate(("bad_header", "bad_header", *["pickle_file"] * 4)):

    @bad(f"pickle_{_protocol}_as_weights", _reason)
    def _(folder: Path, protocol: int = _protocol) -> None:
        (folder / WEIGHTS).write_bytes(pickle.dumps(Execute(folder), protocol))

    @bad(f"pickle_{_protocol}_as_config", "bad_json")
    def _(folder: Path, protocol: int = _protocol) -> None:
        (folder / CONFIG).write_bytes(pickle.dumps(Execute(folder), protocol))


@bad("npz_as_weights", "pickle_file")
def _(folder: Path) -> None:
    file = io.BytesIO()
    np.savez(file, a=np.array([Execute(folder)], dtype=object))
    (folder / WEIGHTS).write_bytes(file.getvalue())


@bad("npy_as_weights", "bad_header")
def _(folder: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([Execute(folder)], dtype=object))
    (folder / WEIGHTS).write_bytes(file.getvalue())


@bad("gzip_as_weights", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(gzip.compress((folder / WEIGHTS).read_bytes()))


@bad("zstd_as_weights", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x28\xb5\x2f\xfd" + (folder / WEIGHTS).read_bytes())


@bad("gzip_as_config", "bad_json")
def _(folder: Path) -> None:
    (folder / CONFIG).write_bytes(gzip.compress(bytes(64 << 20)))


@bad("hard_link_to_something_else", "bad_header")
def _(folder: Path) -> None:
    secret = folder.parent / f"{folder.name}.secret"
    secret.write_text("root:x:0:0\n" * 9)
    (folder / WEIGHTS).unlink()
    os.link(secret, folder / WEIGHTS)


@bad("symlink_of_config", "symbolic_link")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to("/etc/passwd")


@bad("symlink_to_nothing", "symbolic_link")
def _(folder: Path) -> None:
    (folder / "notes").symlink_to("/nowhere/at/all")


@bad("fifo_as_config", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


@bad("device", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:  # only root may
        os.mkfifo(folder / WEIGHTS)


@bad("config_is_a_folder", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


@bad("weights_sparse", "too_large")
def _(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 1 << 40)


@bad("config_sparse", "too_large")
def _(folder: Path) -> None:
    os.truncate(folder / CONFIG, 1 << 40)


@bad("weights_all_zeros", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes(1 << 19))


@bad("symlink", "symbolic_link")
def _(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / f"{folder.name}.elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / f"{folder.name}.elsewhere")


@bad("symlink_extra", "symbolic_link")
def _(folder: Path) -> None:
    (folder / "README.md").symlink_to("/etc/passwd")


@bad("fifo", "not_a_regular_file")
def _(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@bad("weights_are_a_folder", "not_a_regular_file")
def _(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


@bad("folder_missing", "unreadable")
def _(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@bad("no_weights", "missing_file")
def _(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@bad("no_config", "missing_file")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()


# the safetensors container
@bad("empty_weights", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


@bad("git_lfs_pointer", "bad_header")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@bad("header_longer_than_file", "bad_header")
def _(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(data)) + data[8:])


@bad("header_of_exabytes", "bad_header")
def _(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(b"\xff" * 8 + data[8:])


@bad("cut_in_the_middle", "bad_offsets")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])


@bad("bytes_behind_the_end", "bad_offsets")
def _(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"#!/bin/sh\n")


header_case("header_not_json", "bad_header", lambda table: '{"a": ')
header_case("header_nested_deeply", "bad_header", lambda table: '{"a":' + "[" * 200_000)
header_case("header_a_list", "bad_header", lambda table: "[]")
header_case("header_extra_field", "bad_header", lambda table: first(table).update(code="x"))
header_case(
    "metadata_not_text", "bad_header", lambda table: table.update(__metadata__={"format": {}})
)
header_case(
    "duplicate_tensor",
    "duplicate_key",
    lambda table: json.dumps(table)[:-1] + ', "' + first_name(table) + '": {}}',
)
header_case("unknown_dtype", "bad_dtype", lambda table: first(table).update(dtype="I64"))
header_case("negative_size", "bad_shape", lambda table: first(table).update(shape=[-2, -16]))
header_case(
    "lying_shape", "bad_offsets", lambda table: first(table).update(shape=[1 << 40, 1 << 40])
)
header_case(
    "overlapping_offsets",
    "bad_offsets",
    lambda table: table[b_name(table)].update(data_offsets=first(table)["data_offsets"]),
)
header_case("huge_offset", "bad_offsets", lambda t: first(t).update(data_offsets=[1, 1 << 63]))


def _announce(name: str, length: Callable[[int], int]) -> None:
    """The header's length is a lie."""

    @bad(name, "bad_header")
    def _(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        lie = struct.pack("<Q", length(len(data)))
        (folder / WEIGHTS).write_bytes(lie + data[8:])


_announce("header_one_byte_too_long", lambda size: size - 7)
_announce("header_of_2_to_the_63", lambda size: 1 << 63)
_announce("header_of_no_bytes", lambda size: 0)
header_case("header_behind_spaces", "bad_header", lambda t: " " * 500_000 + json.dumps(t))
header_case("header_behind_a_mark", "bad_header", lambda t: "\ufeff" + json.dumps(t))
header_case("header_twice", "bad_header", lambda t: json.dumps(t) * 2)
header_case("header_of_values", "bad_header", lambda t: '{"a":[' + "[]," * 200_000 + "[]]}")
header_case("header_nested_but_closed", "bad_header", lambda t: '{"a":' + "[" * 65 + "]" * 65 + "}")
header_case(
    "key_of_a_tensor_twice",
    "duplicate_key",
    lambda t: json.dumps(t).replace('"dtype": ', '"dtype": "F16", "dtype": ', 1),
)
header_case(
    "metadata_twice",
    "duplicate_key",
    lambda t: '{"__metadata__": {}, "__metadata__": {}, ' + json.dumps(t)[1:],
)


def _move(name: str, move: Callable[[int, int], Any]) -> None:
    """The first tensor lies elsewhere."""
    header_case(name, "bad_offsets", lambda t: first(t).update(data_offsets=_moved(t, move)))


def _moved(table: dict[str, Any], move: Callable[[int, int], Any]) -> Any:
    return move(*first(table)["data_offsets"])


_move("offsets_with_a_gap", lambda begin, end: [begin + 4, end + 4])
_move("offsets_reversed", lambda begin, end: [end, begin])
_move("offsets_negative", lambda begin, end: [begin - end, 0])
_move("offsets_of_fractions", lambda begin, end: [float(begin), float(end)])
_move("offsets_of_booleans", lambda begin, end: [False, True])
_move("offsets_of_three", lambda begin, end: [begin, end, end])
_move("offsets_a_text", lambda begin, end: f"{begin}-{end}")
_move("offsets_empty", lambda begin, end: [begin, begin])

for _dtype in ("F8_E4M3", "F8_E5M2", "BOOL", "C64", "F64", "U8", "", "f32", None, 32, ["F32"]):
    header_case(f"dtype_{_dtype}", "bad_dtype", lambda t, d=_dtype: first(t).update(dtype=d))
for _name, _shape in {
    "over_48_bits": [1 << 48], "over_64_bits": [1 << 70, 1], "of_booleans": [True, True],
    "of_fractions": [2.0, 16.0], "of_texts": ["2"], "of_many_sizes": [1] * 9, "a_number": 32,
    "missing": None,
}.items():  # fmt: skip
    header_case(f"shape_{_name}", "bad_shape", lambda t, s=_shape: first(t).update(shape=s))
NOTHING = {"shape": [0], "data_offsets": [0, 0]}
header_case("shape_overflows", "bad_offsets", lambda t: first(t).update(shape=[1 << 32] * 2))
header_case("shape_of_nothing", "bad_offsets", lambda t: first(t).update(shape=[0, 16]))
header_case(
    "many_tensors",
    "unknown_tensor",
    lambda t: t.update({f"t{n}": t[first_name(t)] | NOTHING for n in range(5000)}),
)


@bad("no_tensors", "no_tensors")
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2) + b"{}")
