"""The header parser meets any bytes with AdapterRefusedError or a correct answer."""

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from ramole_core.adapters.config import parse_config
from ramole_core.adapters.headers import MAX_HEADER_BYTES, parse_header, read_header
from ramole_core.adapters.samples import parse_samples
from ramole_core.adapters.strict_json import parse_strict
from ramole_core.errors import AdapterRefusedError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", 7]),
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
    }
)


@given(st.binary(max_size=64) | JSON.map(lambda v: json.dumps(v).encode()), st.integers(0, 99))
def test_any_header_is_refused_or_parsed(header, size):
    try:
        parse_header(header, size)
    except AdapterRefusedError as e:
        assert e.reason


@given(st.dictionaries(st.text(max_size=6), ENTRY, max_size=3), st.integers(0, 64))
def test_tensors_that_pass_cover_the_buffer(table, size):
    try:
        found = parse_header(json.dumps(table).encode(), size)
    except AdapterRefusedError:
        return
    items = {"F32": 4, "F16": 2, "BF16": 2}
    used = sum(items[t.dtype] * torch.Size(t.shape).numel() for t in found.values())
    assert used == size


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_with_changed_bytes_is_refused_or_read_as_safetensors_reads_it(
    data, tmp_path_factory
):
    whole = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)})
    at = data.draw(st.integers(0, len(whole) - 1))
    new = data.draw(st.binary(min_size=0, max_size=3))
    path = tmp_path_factory.mktemp("h") / "f"
    path.write_bytes(whole[:at] + new + whole[at + 1 :])
    try:
        found = read_header(path)
    except AdapterRefusedError:
        return
    tensors = load_file(path)
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {n: t.shape for n, t in found.items()}


@given(st.binary(max_size=200))
def test_any_bytes_as_config_or_samples_are_refused_or_read(data):
    for parse in (parse_config, parse_samples):
        try:
            parse(data)
        except AdapterRefusedError as e:
            assert e.reason


@given(
    st.dictionaries(
        st.sampled_from(
            ["r", "lora_alpha", "target_modules", "rank_pattern", "layers_pattern", "bias", "new"]
        ),
        JSON,
    )
)
def test_any_config_values_are_refused_or_read(values):
    try:
        parse_config(json.dumps({"peft_type": "LORA", "r": 4} | values).encode())
    except AdapterRefusedError as e:
        assert e.reason


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_that_are_not_finite_are_no_json(number):
    with pytest.raises(ValueError):
        parse_strict(b"[" + number.encode() + b"]")
    assert parse_strict(b"[1e308]") == [1e308]


def test_a_header_over_the_limit_is_refused_unread(tmp_path):
    for length, passes in ((MAX_HEADER_BYTES, True), (MAX_HEADER_BYTES + 1, False)):
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
        (tmp_path / "f").write_bytes(struct.pack("<Q", length) + header + bytes(4))
        if passes:
            assert read_header(tmp_path / "f").keys() == {"a"}
        else:
            with pytest.raises(AdapterRefusedError, match=f"limit {4 << 20}"):
                read_header(tmp_path / "f")


def test_the_announced_length_is_checked_before_anything_is_read(tmp_path):
    for length in (0, 1, 100, 1 << 24, (1 << 24) + 1, (1 << 64) - 1):
        (tmp_path / "f").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(AdapterRefusedError):
            read_header(tmp_path / "f")
