"""A directory store shows no object before it is whole."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ramole_core.errors import NotFoundError
from ramole_core.store.directory import DirectoryStore


@pytest.mark.parametrize("write", ["create", "put", "upload"])
def test_a_reader_never_sees_a_part_of_an_object(write: str, tmp_path: Path) -> None:
    store, data, seen, ended = DirectoryStore(tmp_path / "store"), bytes(4 << 20), set(), []
    source = tmp_path / "source"
    source.write_bytes(data)
    store.put("first", b"")

    def look() -> None:
        last = False
        while not last:
            last = bool(ended)
            for number in range(8):
                with suppress(NotFoundError):
                    seen.add(len(store.get(f"k{number}")))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(8):
            for _ in range(1 if write == "create" else 3):
                if write == "upload":
                    store.upload(source, f"k{number}")
                else:
                    getattr(store, write)(f"k{number}", data)
    finally:
        ended.append(True)
        reader.join()
    assert seen == {len(data)}
