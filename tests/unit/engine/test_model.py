"""Loading a base model: names, device, limits, and errors that name the variable to set."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from ramole_core.adapters.base_info import BaseInfo
from ramole_core.engine.factory import build_engine
from ramole_core.engine.model import describe_base, load_base
from ramole_core.errors import ConfigError
from ramole_core.mole.attach import target_shapes
from ramole_core.settings import Settings

from ..mole.tiny import CONFIGS, DictSource, tiny_model
from .tiny import REFS, Routers, adapters_for, answers, ask, byte_tokenizer, tiny_engine


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny-llama"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_a_folder_is_loaded_and_described(folder):
    base = load_base(Settings(model=str(folder), model_aliases=("org/tiny",), device="cpu"))
    assert base.name == "tiny-llama"
    assert base.aliases == ("org/tiny", str(folder))
    assert (base.device.type, base.dtype) == ("cpu", torch.float32)
    assert "RAMOLE_DEVICE=cpu" in base.reason
    assert base.context_tokens == 256
    assert base.eos_ids == {258}
    assert base.targets == target_shapes(tiny_model())
    info = base.base_info()
    assert BaseInfo.model_validate_json(info.model_dump_json()) == info


def test_the_factory_builds_an_engine_that_answers(folder):
    model = tiny_model()
    routers = Routers(target_shapes(model))
    settings = Settings(model=str(folder), device="cpu", batch_interval_seconds=0.0)
    engine = build_engine(settings, DictSource(adapters_for(model)), routers)
    requests = [ask("hello", 0, 1, router="r1"), ask("hello", 2, gate="mixture")]
    for found, wanted in zip(
        answers(engine, requests), answers(tiny_engine(model), requests), strict=True
    ):
        assert found.text == wanted.text
        assert found.weights == pytest.approx(wanted.weights, abs=1e-6)
    assert engine.base.name == "tiny-llama"
    assert engine.bank.ready(REFS[0])


def test_the_zoo_is_the_default():
    zoo = pytest.importorskip("ramole_core.zoo")
    if not (zoo.base_path() / "config.json").exists():
        pytest.skip("the zoo is not built")
    base = load_base(Settings(device="cpu"))
    assert base.name == "ramole-zoo"
    assert base.targets


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_number_format_follows_the_settings(folder, dtype):
    base = load_base(Settings(model=str(folder), device="cpu", dtype=dtype))
    assert base.dtype == getattr(torch, dtype)
    assert dtype in base.reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gpu9"}, ["RAMOLE_DEVICE", "gpu9"]),
        ({"device": "cuda:99"}, ["RAMOLE_DEVICE", "cuda:99"]),
        ({"device": "cpu", "model": "/nowhere/model"}, ["RAMOLE_MODEL", "/nowhere/model"]),
    ],
)
def test_errors_name_the_variable(settings, words):
    with pytest.raises(ConfigError) as caught:
        load_base(Settings(**settings))
    assert all(word in str(caught.value) for word in words)


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="RAMOLE_MODEL") as caught:
        load_base(Settings(model=str(tmp_path), device="cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_source_of_end_tokens_counts(kind):
    model = tiny_model(kind)
    model.generation_config.eos_token_id = [3, 4]
    model.config.eos_token_id = 5
    base = describe_base(model, byte_tokenizer(), "x")
    assert base.eos_ids == {3, 4, 5, 258}
    assert base.context_tokens == 256


def saved(path, model):
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return Settings(model=str(path), device="cpu")


@pytest.mark.parametrize(
    "config",
    [
        transformers.MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1),
        transformers.RecurrentGemmaConfig(
            vocab_size=259,
            hidden_size=32,
            intermediate_size=48,
            lru_width=32,
            num_attention_heads=4,
            num_hidden_layers=1,
        ),
    ],
    ids=["no cache argument", "stateful"],
)
def test_recurrent_models_are_refused(tmp_path, config):
    settings = saved(tmp_path, transformers.AutoModelForCausalLM.from_config(config))
    with pytest.raises(ConfigError, match=r"RAMOLE_MODEL.*recurrent models"):
        load_base(settings)


def test_an_adapter_is_no_base_model(tmp_path, folder):
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    peft = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="this is an adapter, not a base model"):
        load_base(saved(tmp_path / "adapter", peft))


def test_a_model_that_comes_with_an_adapter_is_no_base_model(folder, monkeypatch):
    """As transformers gives one for a hub id of an adapter."""

    def load(source, dtype):
        base = transformers.AutoModelForCausalLM.from_pretrained(source)
        base.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
        return base, byte_tokenizer()

    monkeypatch.setattr("ramole_core.engine.model._from_pretrained", load)
    with pytest.raises(ConfigError, match="this is an adapter, not a base model"):
        load_base(Settings(model=str(folder), device="cpu"))


@pytest.mark.parametrize("device", ["meta", "hpu", "xpu", "mps"])
def test_a_device_that_this_torch_cannot_use_is_refused_in_one_line(folder, device):
    with pytest.raises(ConfigError, match="RAMOLE_DEVICE") as caught:
        load_base(Settings(model=str(folder), device=device))
    assert "\n" not in str(caught.value)


def test_generation_settings_without_effect_are_named_once(tmp_path, caplog):
    model = tiny_model()
    load_base(saved(tmp_path, model))
    assert "not used" not in caplog.text
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.suppress_tokens = [7]
    model.generation_config.num_beams = 1
    load_base(saved(tmp_path, model))
    [line] = [r.getMessage() for r in caplog.records if "not used" in r.getMessage()]
    assert line.endswith("repetition_penalty=1.3, suppress_tokens=[7]")
