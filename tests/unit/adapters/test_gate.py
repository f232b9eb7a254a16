"""Good adapters pass and mean what PEFT says they mean; bad ones are refused for their reason."""

import copy
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ramole_core.adapters.gate import Limits, check_folder
from ramole_core.adapters.loading import load_lora
from ramole_core.adapters.samples import encode_samples, parse_samples
from ramole_core.adapters.values import check_values
from ramole_core.adapters.weights import LoraPair, LoraWeights
from ramole_core.errors import AdapterRefusedError
from tests.adapters_corpus import GOOD_KINDS, GOOD_SAMPLES, deltas, make_good
from tests.bad_adapters import BAD_CASES, BAD_SAMPLES, edit_config, make_bad


@pytest.mark.parametrize("kind", GOOD_KINDS)
def test_a_good_adapter_passes_and_changes_each_linear_as_peft_does(
    kind, model, base, limits, tmp_path
):
    peft_model = make_good(tmp_path / "a", kind, model)
    found = check_folder(tmp_path / "a", base, limits)
    weights = load_lora(tmp_path / "a")
    check_values(weights)
    wanted = deltas(peft_model)
    assert weights.pairs.keys() == wanted.keys() == found.ranks.keys()
    for target, pair in weights.pairs.items():
        assert pair.rank == found.ranks[target]
        torch.testing.assert_close(pair.b @ pair.a, wanted[target], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (65504.0, 0.05, ""),
        (65600.0, 0.05, "lora_A: value 6.56e"),
        (0.05, 65600.0, "lora_B: value 6.56e"),
        (75.0, 80.0, ""),
        (85.0, 80.0, "norm of the change 1.09e"),
    ],
)
def test_each_bound_of_the_numbers_holds_by_itself(a, b, said):
    pair = LoraPair(torch.full((1, 16), a), torch.full((16, 1), b))  # ||A|| ||B|| = 16 a b
    refusal = pytest.raises(AdapterRefusedError, match=said) if said else nullcontext()
    with refusal:
        check_values(LoraWeights({"q": pair}))


@pytest.mark.parametrize("kind", ["patterns_by_regex", "rslora", "bf16"])
def test_added_to_the_base_the_weights_give_pefts_logits(kind, model, tmp_path):
    peft_model = make_good(tmp_path / "a", kind, model).float()
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for target, pair in load_lora(tmp_path / "a").pairs.items():
            plain.get_submodule(target).weight += pair.b @ pair.a
        tokens = torch.arange(12)[None]
        torch.testing.assert_close(
            plain(tokens).logits, peft_model(tokens).logits, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("case", BAD_CASES)
def test_a_bad_adapter_is_refused_for_its_reason(case, model, base, limits, tmp_path):
    reason = make_bad(tmp_path / "a", case, model)
    begin = time.perf_counter()
    with pytest.raises(AdapterRefusedError) as refusal:
        check_folder(tmp_path / "a", base, limits)
        check_values(load_lora(tmp_path / "a"))
    assert time.perf_counter() - begin < 5
    assert refusal.value.reason == reason
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 700


def test_what_is_odd_but_harmless_is_a_warning(model, base, limits, tmp_path):
    make_good(tmp_path / "a", "other_base_name", model)
    make_good(tmp_path / "b", "extra_files", model)
    assert any("other/base" in w for w in check_folder(tmp_path / "a", base, limits).warnings)
    assert any("notes.txt" in w for w in check_folder(tmp_path / "b", base, limits).warnings)


def test_weights_over_the_size_limit_are_refused_by_number(model, base, tmp_path):
    make_good(tmp_path / "a", "list", model)
    with pytest.raises(AdapterRefusedError, match="limit of 1000 .RAMOLE_MAX_ADAPTER_BYTES") as e:
        check_folder(tmp_path / "a", base, Limits(1000, 64))
    assert e.value.reason == "too_large"


def test_a_wrong_shape_is_named_with_what_was_found_and_wanted(model, base, limits, tmp_path):
    make_bad(tmp_path / "a", "wrong_shape", model)
    with pytest.raises(AdapterRefusedError, match=r"q_proj.lora_A.weight: shape \[2, 17\].*16"):
        check_folder(tmp_path / "a", base, limits)


@pytest.mark.parametrize("case", sorted(BAD_SAMPLES))
def test_bad_samples_are_refused_with_their_line(case):
    data, reason = BAD_SAMPLES[case]
    with pytest.raises(AdapterRefusedError) as refusal:
        parse_samples(data)
    assert refusal.value.reason == reason
    assert reason != "bad_sample" or "line 2" in str(refusal.value)


def test_a_line_that_is_no_string_is_refused_unparsed(monkeypatch):
    monkeypatch.setattr("ramole_core.adapters.samples.parse_strict", lambda line: "a" * len(line))
    for case in ("many_small_values", "line_too_long"):
        with pytest.raises(AdapterRefusedError, match=r"line 2: (not a JSON string|1200005 bytes)"):
            parse_samples(BAD_SAMPLES[case][0])


def test_the_longest_sample_passes_even_with_every_character_escaped():
    text = "\N{GRINNING FACE}" * 100_000
    assert parse_samples(json.dumps(text).encode()) == [text]


def test_samples_survive_their_file():
    assert parse_samples(encode_samples(GOOD_SAMPLES)) == GOOD_SAMPLES


def test_only_running_a_worker_needs_torch():
    names = "gate, staging, registry, reception, verdict, card, intake"
    code = f"import sys; sys.modules['torch'] = None\nfrom ramole_core.adapters import {names}"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("list", "F32"), ("bf16", "BF16"), ("fp16", "F16"), ("mixed_dtypes", "mixed")],
)
def test_the_gate_names_the_number_format(kind, dtype, model, base, limits, tmp_path):
    make_good(tmp_path / "a", kind, model)
    assert check_folder(tmp_path / "a", base, limits).dtype == dtype


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ({"some_new_feature": None, "another": False, "third": [], "fourth": {}}, True),
        ({"some_new_feature": 0}, False),
        ({"r": True}, False),
        ({"lora_alpha": "8"}, False),
        ({"use_rslora": 1}, False),
        ({"init_lora_weights": "pissa"}, False),
        ({"init_lora_weights": "mica"}, True),
        ({"corda_config": {"cache_file": "/etc/passwd"}}, True),  # read by nobody
        ({"trust_remote_code": False}, True),
        ({"auto_mapping": {"parent_library": "transformers_evil"}}, False),
        ({"target_modules": None}, False),
        ({"ensure_weight_tying": True}, True),
        ({"init_lora_weights": "Gaussian"}, True),
        ({"init_lora_weights": "PiSSA"}, False),
        ({"r": 2.0}, True),
        ({"runtime_config": {"ephemeral_gpu_offload": False}}, True),
        ({"runtime_config": [False]}, False),
        ({"target_modules": []}, False),
        ({"layers_pattern": "(x+)+"}, False),
        ({"layers_to_transform": ["1"]}, False),
    ],
)
def test_a_config_key_passes_when_it_cannot_matter(values, accepted, model, base, limits, tmp_path):
    make_good(tmp_path / "a", "list", model)
    edit_config(tmp_path / "a", **values)
    try:
        check_folder(tmp_path / "a", base, limits)
    except AdapterRefusedError as e:
        assert not accepted, e
        assert next(iter(values)) in str(e) or e.reason in ("target_mismatch", "bad_config")
    else:
        assert accepted
