"""The cache gives whole, checked adapters or one clear error."""

import os
import shutil
import threading

import pytest
import torch

from ramole_core import keys
from ramole_core.adapters.cache import AdapterCache
from ramole_core.adapters.card import card_key
from ramole_core.adapters.loading import load_lora
from ramole_core.adapters.reception import receive
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import PromptError, StoreUnavailableError
from ramole_core.store.directory import DirectoryStore
from tests.adapters_corpus import make_good, stage_raw
from tests.unit.adapters.stores import Counting, Cut

REF = AdapterRef("n0", 1)


@pytest.fixture
def store(model, base, limits, tmp_path):
    """A store with n0@1, n1@1 and n2@1."""
    store = DirectoryStore(tmp_path / "store")
    registry = Registry(store)
    for number in range(3):
        make_good(tmp_path / f"a{number}", "rslora", model, seed=number)
        stage_raw(store, tmp_path / f"a{number}", b'"x"\n', f"n{number}", "ann", f"u{number}")
        receive(f"u{number}", store, registry, base, limits, lambda *_: None, tmp_path / "w")
    return store


def test_a_version_is_fetched_once_and_equals_what_was_uploaded(store, tmp_path):
    counting = Counting(store)
    cache = AdapterCache(counting, tmp_path / "cache")
    weights = cache.load(REF)
    assert len(counting.calls) == 3
    cache.load(REF)
    AdapterCache(counting, tmp_path / "cache").load(REF)
    assert len(counting.calls) == 3
    wanted = load_lora(tmp_path / "a0")
    for target, pair in weights.pairs.items():
        assert torch.equal(pair.b, wanted.pairs[target].b)
        assert torch.equal(pair.a, wanted.pairs[target].a)


def test_a_file_cut_short_is_fetched_again(store, tmp_path):
    cache = AdapterCache(store, tmp_path / "cache")
    cache.load(REF)
    (tmp_path / "cache/n0/1/adapter_model.safetensors").write_bytes(b"half")
    assert len(cache.load(REF).pairs) == 4


@pytest.mark.parametrize("file", ["card.json", "adapter_config.json"])
def test_a_lost_file_is_fetched_again(file, store, tmp_path):
    cache = AdapterCache(store, tmp_path / "cache")
    cache.load(REF)
    (tmp_path / "cache/n0/1" / file).unlink()
    assert len(cache.load(REF).pairs) == 4


def test_garbage_of_the_right_size_is_fetched_again(store, tmp_path):
    cache = AdapterCache(store, tmp_path / "cache")
    cache.load(REF)
    path = tmp_path / "cache/n0/1/adapter_model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert len(cache.load(REF).pairs) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.delete(card_key(REF)),
        lambda s: s.put(card_key(REF), b"{}"),
        lambda s: s.delete(keys.adapter(REF) + "adapter_config.json"),
        lambda s: s.put(keys.adapter(REF) + "adapter_model.safetensors", b"other"),
    ],
)
def test_what_is_missing_or_damaged_in_the_store_is_unavailable(spoil, store, tmp_path):
    spoil(store)
    with pytest.raises(PromptError, match="n0@1") as error:
        AdapterCache(store, tmp_path / "cache").load(REF)
    assert error.value.code == "adapter_unavailable"
    assert not list((tmp_path / "cache/.tmp").iterdir()) and not (tmp_path / "cache/n0").exists()


def test_a_store_that_does_not_answer_says_so(tmp_path):
    class Down:
        def get(self, key):
            raise StoreUnavailableError("down")

    with pytest.raises(StoreUnavailableError):
        AdapterCache(Down(), tmp_path).load(REF)


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_a_cut_download_leaves_nothing_half(cut_at, store, tmp_path):
    with pytest.raises(Cut):
        AdapterCache(Counting(store, cut_at, after=True), tmp_path / "cache").load(REF)
    assert len(AdapterCache(store, tmp_path / "cache").load(REF).pairs) == 4


def test_what_was_used_longest_ago_is_pruned(store, tmp_path):
    AdapterCache(store, tmp_path / "probe").load(REF)
    size = sum(p.stat().st_size for p in (tmp_path / "probe/n0/1").iterdir())
    cache = AdapterCache(store, tmp_path / "cache", max_bytes=int(2.5 * size))
    cache.load(REF)
    cache.load(AdapterRef("n1", 1))
    os.utime(tmp_path / "cache/n0/1/card.json", (1, 1))
    cache.load(REF)  # used again just now
    os.utime(tmp_path / "cache/n1/1/card.json", (2, 2))
    cache.load(AdapterRef("n2", 1))
    assert not (tmp_path / "cache/n1/1").exists()
    assert (tmp_path / "cache/n0/1").exists() and (tmp_path / "cache/n2/1").exists()


def test_a_cache_smaller_than_one_adapter_still_serves(store, tmp_path):
    cache = AdapterCache(store, tmp_path / "cache", max_bytes=1)
    for number in (0, 1, 0):
        assert len(cache.load(AdapterRef(f"n{number}", 1)).pairs) == 4


def test_loads_from_many_threads_and_caches_agree(store, tmp_path):
    caches = [AdapterCache(store, tmp_path / "cache", max_bytes=1) for _ in range(2)]
    results, errors = [], []

    def load(number):
        try:
            for i in range(12):
                name = f"n{(number + i) % 3}"
                results.append(len(caches[number % 2].load(AdapterRef(name, 1)).pairs))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and set(results) == {4} and len(results) == 48


def test_a_cache_keeps_no_lock_of_what_nobody_loads(store, tmp_path):
    cache = AdapterCache(store, tmp_path / "cache")
    for number in range(3):
        cache.load(AdapterRef(f"n{number}", 1))
    assert not cache._busy


def test_weights_outlive_their_files(store, tmp_path):
    weights = AdapterCache(store, tmp_path / "cache").load(REF)
    before = {t: p.a.clone() for t, p in weights.pairs.items()}
    path = tmp_path / "cache/n0/1/adapter_model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    shutil.rmtree(tmp_path / "cache")
    assert all(torch.equal(weights.pairs[t].a, a) for t, a in before.items())
