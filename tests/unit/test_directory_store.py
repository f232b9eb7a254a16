"""What only a directory can do as a store: be taken away."""

import os
from pathlib import Path
from typing import Any

import pytest

from ramole_core.errors import NotFoundError, StoreUnavailableError
from ramole_core.store.directory import DirectoryStore


@pytest.mark.parametrize("with_file", [False, True], ids=["gone", "a file in its place"])
def test_a_folder_that_is_gone_is_an_outage_and_nothing_is_made_in_its_place(
    tmp_path: Path, with_file: bool
) -> None:
    root = tmp_path / "store"
    store = DirectoryStore(root)
    store.put("a/b", b"1")
    assert store.get("a/b") == b"1"
    root.rename(tmp_path / "away")
    if with_file:
        root.touch()
    for use in (
        lambda: store.get("a/b"),
        lambda: store.exists("a/b"),
        lambda: store.put("a/c", b""),
        lambda: store.create("a/c", b""),
        lambda: list(store.entries("a/")),
        lambda: store.children("a/"),
        store.check,
    ):
        with pytest.raises(StoreUnavailableError, match="is no folder now"):
            use()
    assert root.exists() == with_file
    root.unlink(missing_ok=True)
    (tmp_path / "away").rename(root)
    assert store.get("a/b") == b"1"


def test_a_store_that_was_never_used_is_empty(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    assert not store.exists("a") and list(store.entries("")) == []
    with pytest.raises(NotFoundError):
        store.get("a")


def test_a_folder_that_is_pruned_while_it_is_listed_has_no_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("a/b", b"1")
    store.put("c", b"1")

    def pruned(folder: Path, listed: Any = os.scandir) -> Any:
        store.delete("a/b")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", pruned)
    assert store.children("a/") == []
