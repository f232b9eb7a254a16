"""Device and number format: what is chosen, and that the reason is said."""

import contextlib

import pytest
import torch
import transformers

from ramole_core.engine.device import MIN_BFLOAT16_WIDTH, choose_device
from ramole_core.engine.model import load_base
from ramole_core.errors import ConfigError
from ramole_core.settings import Settings

from ..mole.tiny import tiny_model
from .tiny import byte_tokenizer

WIDE = 4 * MIN_BFLOAT16_WIDTH


def wide() -> int:
    return WIDE


def never() -> int:
    raise AssertionError("the width does not matter here")


@pytest.fixture
def cuda(monkeypatch):
    """A function that pretends: so many CUDA devices, of which some compute in bfloat16."""

    def pretend(count, native=()):
        current = [0]

        @contextlib.contextmanager
        def device(chosen):
            before, current[0] = current[0], chosen.index or 0
            yield
            current[0] = before

        def is_bf16_supported(including_emulation=True):
            return including_emulation or current[0] in native

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)

    return pretend


@pytest.fixture
def cpu(monkeypatch, cuda):
    """A function that pretends: no CUDA, and a CPU with these capabilities."""
    cuda(0)

    def pretend(*names, onednn=True):
        found = {"avx2": True, "avx512_bf16": True, **dict.fromkeys(names, True)}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)

    return pretend


def test_cuda_is_taken_when_it_is_there(cuda):
    cuda(1, native=[0])
    device, dtype, reason = choose_device(Settings(), never)
    assert (device.type, dtype) == ("cuda", torch.bfloat16)
    assert "CUDA found" in reason and "bfloat16" in reason


def test_emulated_bfloat16_is_not_chosen(cuda):
    cuda(1)
    _, dtype, reason = choose_device(Settings(), never)
    assert dtype == torch.float16
    assert "no bfloat16" in reason


def test_the_chosen_cuda_device_is_asked_not_the_first(cuda):
    cuda(2, native=[1])
    found = [choose_device(Settings(device=f"cuda:{i}"), never)[1] for i in range(2)]
    assert found == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("name", ["amx_bf16", "bf16"])
@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        (0, torch.float32),
        (MIN_BFLOAT16_WIDTH - 1, torch.float32),
        (MIN_BFLOAT16_WIDTH, torch.bfloat16),
        (WIDE, torch.bfloat16),
    ],
)
def test_a_cpu_that_multiplies_bfloat16_does_so_for_wide_models(cpu, name, width, dtype):
    cpu(name)
    device, found, reason = choose_device(Settings(), lambda: width)
    assert (device.type, found) == ("cpu", dtype)
    assert "no CUDA found" in reason and str(dtype).removeprefix("torch.") in reason
    assert (str(width) if width else "not known") in reason


def test_other_cpus_stay_exact_and_the_width_is_not_asked(cpu, monkeypatch):
    cpu()
    assert choose_device(Settings(), never)[1] == torch.float32
    cpu("amx_bf16", onednn=False)
    assert choose_device(Settings(), never)[1] == torch.float32
    cpu("amx_bf16")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    _, dtype, reason = choose_device(Settings(), never)
    assert dtype == torch.float32
    assert "no bfloat16 matrix instructions" in reason


def test_other_devices_stay_exact(cpu):
    cpu("amx_bf16")
    device, dtype, reason = choose_device(Settings(device="mps"), never)
    assert (device.type, dtype) == ("mps", torch.float32)
    assert "RAMOLE_DEVICE=mps" in reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_format_that_was_asked_for_is_taken(cpu, dtype):
    cpu("amx_bf16")
    _, found, reason = choose_device(Settings(dtype=dtype), never)
    assert found == getattr(torch, dtype)
    assert f"RAMOLE_DTYPE={dtype}" in reason


@pytest.mark.parametrize("word", ["gpu9", "meta", "cuda:1", "cuda:99", ""])
def test_a_device_that_is_none_is_refused_in_one_line(cuda, word):
    cuda(1)
    with pytest.raises(ConfigError, match="RAMOLE_DEVICE") as caught:
        choose_device(Settings(device=word), wide)
    assert repr(word) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_this_machine_has_gives_a_choice():
    device, dtype, reason = choose_device(Settings(), wide)
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "CUDA" in reason and str(dtype).removeprefix("torch.") in reason


def saved(path, model):
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return Settings(model=str(path))


def test_the_width_comes_from_the_model_s_configuration(cpu, tmp_path):
    cpu("amx_bf16")
    narrow = load_base(saved(tmp_path / "narrow", tiny_model()))
    assert narrow.dtype == torch.float32
    assert f"{narrow.model.config.hidden_size} wide" in narrow.reason
    config = transformers.GPTNeoXConfig(
        vocab_size=259,
        hidden_size=MIN_BFLOAT16_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=8,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert load_base(saved(tmp_path / "wide", model)).dtype == torch.bfloat16


def test_the_zoo_stays_exact_on_every_cpu(cpu):
    zoo = pytest.importorskip("ramole_core.zoo")
    if not (zoo.base_path() / "config.json").exists():
        pytest.skip("the zoo is not built")
    cpu("amx_bf16")
    base = load_base(Settings())
    assert base.dtype == torch.float32
    assert "128 wide" in base.reason


@pytest.mark.parametrize(
    "text", [None, "{}", "no JSON", '{"model_type": "llama", "hidden_size": 9}']
)
def test_a_model_that_cannot_be_loaded_says_the_same_whether_its_width_was_asked(
    cpu, tmp_path, text
):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    said = []
    for names in ([], ["amx_bf16"]):
        cpu(*names)
        with pytest.raises(ConfigError, match="RAMOLE_MODEL") as caught:
            load_base(Settings(model=str(tmp_path)))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
