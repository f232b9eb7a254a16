"""One suite over every object store: a directory, moto, and a real S3 server where one is given."""

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramole_core.errors import (
    ConfigError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
    TooLargeError,
    UnavailableError,
)
from ramole_core.settings import Settings
from ramole_core.store import ObjectStore, open_store
from ramole_core.store.minio import MinioStore
from tests.servers import free_port

S3_VARIABLE = "RAMOLE_TEST_S3_URL"


def s3_settings(endpoint: str, prefix: str = "", **changes: str) -> Settings:
    return Settings.load(
        {},
        store_url=f"s3://contract/{prefix}?endpoint={endpoint}",
        **{"store_access_key": "testkey123", "store_secret_key": "testsecret123", **changes},
    )


@pytest.fixture(scope="module")
def moto_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server._port}"
    server.stop()


@pytest.fixture
def real_endpoint() -> str:
    """A real S3 server. CI gives one; without it these tests skip, in CI they fail."""
    url = os.environ.get(S3_VARIABLE)
    if not url:
        if os.environ.get("RAMOLE_TEST_REQUIRE_S3"):
            pytest.fail(f"{S3_VARIABLE} is not set")
        pytest.skip(f"{S3_VARIABLE} is not set: no real S3 server")
    return url


@pytest.fixture(params=["directory", "moto", pytest.param("real", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return open_store(Settings.load({}, store_url=str(tmp_path / "store")))
    endpoint = request.getfixturevalue(
        "moto_endpoint" if request.param == "moto" else "real_endpoint"
    )
    opened = open_store(s3_settings(endpoint, prefix=uuid.uuid4().hex))
    assert isinstance(opened, MinioStore)
    opened.make_bucket()
    return opened


def test_what_is_put_is_read_back_whole(store: ObjectStore) -> None:
    data = os.urandom(100_000)
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    store.put("a/b.bin", b"new")
    assert store.get("a/b.bin") == b"new"


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    assert store.create("live/x", b"")
    assert store.get("live/x") == b""
    assert [e.key for e in store.entries("live/")] == ["live/x"]


def test_a_missing_object_is_not_found(store: ObjectStore, tmp_path: Path) -> None:
    assert not store.exists("no/such")
    with pytest.raises(NotFoundError):
        store.get("no/such")
    with pytest.raises(NotFoundError):
        store.download("no/such", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    store.delete("no/such")
    assert list(store.entries("no/")) == []
    assert store.children("no/") == []


def test_create_wins_once_and_its_own_repetition_counts_as_won(store: ObjectStore) -> None:
    assert store.create("k", b"first")
    assert not store.create("k", b"second")
    assert store.create("k", b"first")
    assert store.get("k") == b"first"


def test_of_eight_racing_creators_exactly_one_wins(store: ObjectStore) -> None:
    for n in range(5):
        barrier = threading.Barrier(8)
        won: list[int] = []

        def race(i: int, key: str, barrier: threading.Barrier, won: list[int]) -> None:
            barrier.wait()
            if store.create(key, b"%d" % i * 1000):
                won.append(i)

        threads = [
            threading.Thread(target=race, args=(i, f"race/{n}", barrier, won)) for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get(f"race/{n}") == b"%d" % won[0] * 1000


def test_entries_and_children_list_in_order_below_a_prefix(store: ObjectStore) -> None:
    for key in ("j/b/2", "j/a/1", "j/a/0", "j/c", "k/a"):
        store.put(key, key.encode())
    found = list(store.entries("j/"))
    assert [e.key for e in found] == ["j/a/0", "j/a/1", "j/b/2", "j/c"]
    assert {e.size_bytes for e in found} == {3, 5}
    assert all(e.modified_seconds > 1e9 for e in found)
    assert store.children("j/") == ["a", "b", "c"]
    assert {"j/c", "k/a"} <= {e.key for e in store.entries("")}
    store.delete("j/b/2")
    assert store.children("j/") == ["a", "c"]


def test_a_listing_goes_beyond_one_page(store: ObjectStore) -> None:
    for i in range(1005):
        store.put(f"many/{i:05d}", b"")
    assert [e.key for e in store.entries("many/")] == [f"many/{i:05d}" for i in range(1005)]


def test_files_go_up_and_down(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(6 << 20))  # above one multipart part
    store.upload(source, "big/file")
    store.download("big/file", target)
    assert target.read_bytes() == source.read_bytes()
    target.unlink()
    with pytest.raises(TooLargeError, match=f"file: over the limit of {(6 << 20) - 1} bytes"):
        store.download("big/file", target, max_bytes=(6 << 20) - 1)
    assert not target.exists()
    store.download("big/file", target, max_bytes=6 << 20)
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


@pytest.mark.parametrize(
    "key", ["", "/abs", "a//b", "../x", "a/../b", "a/./b", "nul\0", "a\\b", "x" * 1000, "a/"]
)
def test_unsafe_keys_are_refused(store: ObjectStore, key: str) -> None:
    for call in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(InvalidInputError):
            call()


def test_check_passes_where_the_store_is(store: ObjectStore) -> None:
    store.check()


def test_an_unreachable_server_is_named_with_its_variable() -> None:
    store = open_store(s3_settings(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(StoreUnavailableError, match="127.0.0.1.*RAMOLE_STORE_URL"):
        store.check()
    with pytest.raises(StoreUnavailableError, match="RAMOLE_STORE_URL"):
        store.get("x")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(Settings.load({}, store_url=str(tmp_path / "file" / "store")))
    with pytest.raises((StoreUnavailableError, NotFoundError), match="store"):
        store.check()


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://b?endpoint=ftp://x",
        "s3://user:pw@bucket?endpoint=http://x",
        "gs://b",
        "s3://b?endpoint=http://x",
    ],
)
def test_a_url_that_names_no_store_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="RAMOLE_STORE_URL") as caught:
        open_store(Settings.load({}, store_url=url))
    assert "pw" not in str(caught.value)


@pytest.mark.s3
def test_a_wrong_secret_is_refused_and_never_shown(real_endpoint: str) -> None:
    store = open_store(s3_settings(real_endpoint, store_secret_key="wrong-secret"))
    with pytest.raises(StoreUnavailableError, match="RAMOLE_STORE_SECRET_KEY") as caught:
        store.put("x", b"")
    assert "wrong-secret" not in str(caught.value)


def test_links_and_special_files_in_a_directory_store_are_not_there(tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_bytes(b"keep me")
    store = open_store(Settings.load({}, store_url=str(tmp_path / "store")))
    store.put("staging/real/a", b"a")
    folder = tmp_path / "store" / "staging"
    (folder / "evil").symlink_to(outside)
    (folder / "real" / "link").symlink_to(outside / "file")
    os.mkfifo(folder / "real" / "pipe")
    assert [e.key for e in store.entries("staging/")] == ["staging/real/a"]
    assert list(store.entries("staging/evil/")) == []
    for key in ("staging/evil/file", "staging/real/link", "staging/real/pipe"):
        assert not store.exists(key)
        with pytest.raises(NotFoundError):
            store.get(key)
        with pytest.raises(NotFoundError):
            store.download(key, tmp_path / "out")
    with pytest.raises(NotFoundError):
        store.delete("staging/evil/file")
    with pytest.raises(NotFoundError):
        store.put("staging/evil/new", b"x")
    assert [p.name for p in outside.iterdir()] == ["file"]
    store.delete("staging/real/link")
    assert (outside / "file").read_bytes() == b"keep me"


def test_a_local_disk_that_fails_is_not_the_store_s_fault(
    store: ObjectStore, tmp_path: Path
) -> None:
    store.put("a", b"x")
    with pytest.raises(UnavailableError, match="RAMOLE_HOME") as caught:
        store.download("a", tmp_path / "no" / "such" / ("x" * 300))
    assert not isinstance(caught.value, StoreUnavailableError)
    with pytest.raises(UnavailableError, match="RAMOLE_HOME"):
        store.upload(tmp_path / "no-such-file", "b")
