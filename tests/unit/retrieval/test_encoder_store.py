"""Trained encoder versions: whole in the store or not there, checked on the way back."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramole_core import keys
from ramole_core.errors import ConflictError, InvalidInputError, NotFoundError
from ramole_core.retrieval.card import encoder_cards, read_encoder_card
from ramole_core.retrieval.encoder import Encoder
from ramole_core.retrieval.encoder_store import fetch_encoder, store_encoder
from ramole_core.store.directory import DirectoryStore
from tests.tiny_encoder import encoder_card, letter_model
from tests.unit.adapters.stores import Counting, Cut

TEXTS = ["abc", "hello", "zz"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letter_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def copied(model: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_stored_encoder_comes_back_with_its_version_tau_prefix_and_vectors(
    model: Path, store: DirectoryStore, cache: Path
) -> None:
    card = encoder_card("e1", tau=0.11, prefix="a ")
    stored = store_encoder(store, model, card)
    assert sorted(stored.files) == sorted(p.name for p in model.iterdir())
    encoder = fetch_encoder(store, "e1", cache)
    assert (encoder.version, encoder.tau) == ("e1", 0.11)
    assert np.array_equal(encoder.encode(TEXTS), Encoder.open(model, card).encode(TEXTS))
    plain = Encoder.open(model, encoder_card("e2"))
    assert np.array_equal(encoder.encode(["b"]), plain.encode(["a b"]))


def test_an_encoder_on_this_machine_needs_no_second_download(
    model: Path, store: DirectoryStore, cache: Path
) -> None:
    store_encoder(store, model, encoder_card("e1"))
    fetch_encoder(store, "e1", cache)
    counting = Counting(store)
    fetch_encoder(counting, "e1", cache)
    assert [name for name, _ in counting.calls] == ["get"]
    assert [path.name for path in (cache / ".tmp").iterdir()] == []


def test_an_upload_cut_anywhere_leaves_no_version_and_can_be_repeated(
    model: Path, tmp_path: Path
) -> None:
    num_calls = len(list(model.iterdir())) + 2  # look, files, card
    for at in range(1, num_calls + 1):
        store = DirectoryStore(tmp_path / f"store-{at}")
        with pytest.raises(Cut):
            store_encoder(Counting(store, cut_at=at), model, encoder_card("e1"))
        assert encoder_cards(store) == []
        with pytest.raises(NotFoundError):
            fetch_encoder(store, "e1", tmp_path / "cache")
        store_encoder(store, model, encoder_card("e1"))
        assert [card.version for card in encoder_cards(store)] == ["e1"]


def test_a_version_is_immutable_and_storing_it_again_is_no_error(
    model: Path, store: DirectoryStore, tmp_path: Path
) -> None:
    first = store_encoder(store, model, encoder_card("e1"))
    again = store_encoder(store, model, encoder_card("e1", created_at="2027-01-01T00:00:00+00:00"))
    assert again == first
    other = letter_model(tmp_path / "other", seed=1)
    with pytest.raises(ConflictError, match="e1"):
        store_encoder(store, other, encoder_card("e1"))


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_version_damaged_in_the_store_is_refused_and_not_kept(
    model: Path, store: DirectoryStore, cache: Path, damage: str
) -> None:
    store_encoder(store, model, encoder_card("e1"))
    key = keys.encoder_files("e1") + "model.safetensors"
    if damage == "gone":
        store.delete(key)
    else:
        store.put(key, store.get(key)[:-1] + b"\x01")
    with pytest.raises(InvalidInputError, match="e1"):
        fetch_encoder(store, "e1", cache)
    assert not (cache / "e1").exists() and list((cache / ".tmp").iterdir()) == []


def test_a_version_damaged_on_this_machine_is_fetched_again(
    model: Path, store: DirectoryStore, cache: Path
) -> None:
    store_encoder(store, model, encoder_card("e1"))
    wanted = fetch_encoder(store, "e1", cache).encode(TEXTS)
    (cache / "e1" / "model.safetensors").write_bytes(b"cut")
    assert np.array_equal(fetch_encoder(store, "e1", cache).encode(TEXTS), wanted)
    (cache / "e1" / "pytorch_model.bin").write_bytes(b"a stranger")
    fetch_encoder(store, "e1", cache)
    assert not (cache / "e1" / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    "name", ["model.py", "pytorch_model.bin", "weights.pt", "x.pkl", ".hidden.json", "a b.json"]
)
def test_files_that_a_model_may_not_have_are_not_stored(
    model: Path, store: DirectoryStore, tmp_path: Path, name: str
) -> None:
    folder = copied(model, tmp_path / "copy")
    (folder / name).write_bytes(b"x")
    with pytest.raises(InvalidInputError, match="encoder file"):
        store_encoder(store, folder, encoder_card("e1"))
    assert list(store.entries(keys.ENCODERS)) == []


def test_links_and_too_many_files_are_not_stored(
    model: Path, store: DirectoryStore, tmp_path: Path
) -> None:
    folder = copied(model, tmp_path / "copy")
    os.symlink("/etc/passwd", folder / "vocab.txt")
    with pytest.raises(InvalidInputError, match="regular file"):
        store_encoder(store, folder, encoder_card("e1"))
    (folder / "vocab.txt").unlink()
    for number in range(64):
        (folder / f"{number}.txt").touch()
    with pytest.raises(InvalidInputError, match="at most 64"):
        store_encoder(store, folder, encoder_card("e1"))


@pytest.mark.parametrize(
    "path", ["../../evil.json", "/etc/x.json", "a/../b.json", "a//b.json", "code.py", "w.bin", ""]
)
def test_a_card_with_an_unsafe_path_is_not_followed(
    model: Path, store: DirectoryStore, cache: Path, path: str
) -> None:
    store_encoder(store, model, encoder_card("e1"))
    record = json.loads(store.get(keys.encoder_card("e1")))
    record["files"][path] = "0" * 64
    store.put(keys.encoder_card("e1"), json.dumps(record).encode())
    with pytest.raises(InvalidInputError, match="not readable"):
        fetch_encoder(store, "e1", cache)
    assert not cache.exists()


def test_a_model_that_gives_no_unit_vectors_is_refused(
    store: DirectoryStore, cache: Path, tmp_path: Path
) -> None:
    import safetensors.torch

    folder = letter_model(tmp_path / "nan")
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({k: v * float("nan") for k, v in tensors.items()}, path)
    store_encoder(store, folder, encoder_card("e1"))
    with pytest.raises(InvalidInputError, match="e1"):
        fetch_encoder(store, "e1", cache)


def test_the_list_is_by_time_and_leaves_out_what_is_damaged_or_has_no_card(
    model: Path, store: DirectoryStore
) -> None:
    store_encoder(store, model, encoder_card("a", created_at="2026-03-01T00:00:00+00:00"))
    store_encoder(store, model, encoder_card("b", created_at="2026-02-01T00:00:00+00:00"))
    store.put(keys.encoder("built-in") + "vectors/x@1.npy", b"")
    store.put(keys.encoder_card("damaged"), b"{}")
    store.put(keys.encoder_card("moved"), store.get(keys.encoder_card("a")))
    assert [card.version for card in encoder_cards(store)] == ["b", "a"]
    with pytest.raises(InvalidInputError, match="damaged"):
        read_encoder_card(store, "damaged")


def test_many_at_once_fetch_into_one_folder(
    model: Path, store: DirectoryStore, cache: Path
) -> None:
    store_encoder(store, model, encoder_card("e1"))
    found: list[Any] = []

    def work() -> None:
        found.append(fetch_encoder(store, "e1", cache).encode(TEXTS))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(each, found[0]) for each in found)
    assert sorted(path.name for path in cache.iterdir()) == [".tmp", "e1"]
