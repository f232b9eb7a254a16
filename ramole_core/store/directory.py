"""A directory as object store: the embedded twin of an S3 bucket.

`create` writes a temporary file, syncs it and hard-links it to its name: link fails when the name
exists, so exactly one of many writers wins with whole content. `put` renames over the old file.
Cut in the middle, either leaves only a file under `.tmp/`, which no listing shows. Symbolic links
and special files inside the folder count as absent and are never followed, opened or listed.
"""

import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from ramole_core.errors import ConfigError, NotFoundError, StoreUnavailableError
from ramole_core.store.base import ObjectInfo, checked_key, local_file, too_large

_TMP: Final = ".tmp"
_PLACE_ATTEMPTS: Final = 5
COPY_BYTES: Final = 1 << 20


class DirectoryStore:
    """ObjectStore over the files of one directory, made at the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._was_there = False

    @classmethod
    def from_location(cls, location: str) -> "DirectoryStore":
        """`location` is a path or a file:// URL."""
        if "://" in location and not location.startswith("file://"):
            raise ConfigError(
                f"RAMOLE_STORE_URL={location.split('://')[0]}://…: use a directory or s3://bucket"
            )
        return cls(Path(location.removeprefix("file://")).absolute())

    def check(self) -> None:
        """See ObjectStore. A root that could be made is as good as one that is there."""
        self._check_root()
        with self._translated("."):
            nearest = next(path for path in (self._root, *self._root.parents) if path.exists())
        if not nearest.is_dir() or (nearest != self._root and not os.access(nearest, os.W_OK)):
            raise StoreUnavailableError(
                f"store {self._root} (RAMOLE_STORE_URL): {nearest} is no folder that can be written"
            )

    def get(self, key: str) -> bytes:
        """See ObjectStore."""
        with self._translated(key), self._opened(key) as file:
            return file.read()

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        with self._translated(key):
            temporary = self._written(data)
            try:
                self._placed(temporary, key, os.replace)
            finally:
                temporary.unlink(missing_ok=True)

    def create(self, key: str, data: bytes) -> bool:
        """See ObjectStore."""
        with self._translated(key):
            temporary = self._written(data)
            try:
                self._placed(temporary, key, os.link)
            except FileExistsError:
                return self.get(key) == data
            finally:
                temporary.unlink()
            return True

    def exists(self, key: str) -> bool:
        """See ObjectStore."""
        try:
            with self._translated(key):
                return stat.S_ISREG(self._path(key).lstat().st_mode)
        except NotFoundError:
            return False

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        with self._translated(prefix):
            self._check_root()
            folder = self._root / prefix.rpartition("/")[0]
            if not self._leads_outside(folder):
                yield from (info for info in self._walk(folder) if info.key.startswith(prefix))

    def children(self, prefix: str) -> list[str]:
        """See ObjectStore."""
        with self._translated(prefix):
            self._check_root()
            folder = self._root / checked_key(prefix.rstrip("/"))
            if not folder.is_dir() or self._leads_outside(folder):
                return []
            try:
                return sorted(entry.name for entry in os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):  # pruned a moment ago
                self._check_root()
                return []

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with self._translated(key):
            path = self._path(key)
            path.unlink(missing_ok=True)
            self._prune(path.parent)

    def upload(self, path: Path, key: str) -> None:
        """See ObjectStore."""
        with local_file(path), path.open("rb") as source, self._translated(key):
            temporary = self._temporary()
            try:
                with temporary.open("xb") as target:
                    shutil.copyfileobj(source, target, COPY_BYTES)
                _sync(temporary)
                self._placed(temporary, key, os.replace)
            finally:
                temporary.unlink(missing_ok=True)

    def download(self, key: str, path: Path, max_bytes: int | None = None) -> None:
        """See ObjectStore."""
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.part")
        left = sys.maxsize if max_bytes is None else max_bytes
        with self._translated(key), self._opened(key) as source, local_file(path):
            try:
                with temporary.open("xb") as target:
                    while part := source.read(min(COPY_BYTES, left + 1)):  # it may grow meanwhile
                        left -= len(part)
                        if left < 0:
                            raise too_large(key, max_bytes or 0)
                        target.write(part)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def unfinished(self) -> list[Path]:
        """Files of writes under way, or that were cut (kill -9)."""
        with self._translated(_TMP):
            return sorted((self._root / _TMP).glob("*"))

    def _path(self, key: str) -> Path:
        """Where the object lies. Through a symbolic link lies nothing: NotFoundError."""
        path = self._root / checked_key(key)
        if self._leads_outside(path.parent):
            raise NotFoundError(f"{key} is not in the store {self._root}: a symbolic link")
        return path

    def _leads_outside(self, folder: Path) -> bool:
        """True when a symbolic link stands between the root and the folder (or is the folder)."""
        inside = os.path.relpath(folder, self._root)
        return os.path.realpath(folder) != os.path.normpath(
            os.path.join(os.path.realpath(self._root), inside)
        )

    def _opened(self, key: str) -> BinaryIO:
        """The regular file of a key; what strangers may put there (links, pipes) is not opened."""
        handle = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise NotFoundError(f"{key} is not in the store {self._root}: not a regular file")
        return os.fdopen(handle, "rb")

    def _placed(self, temporary: Path, key: str, place: Callable[[Path, Path], None]) -> None:
        """Puts a finished file under its name; a delete may prune the folder in between."""
        path = self._path(key)
        for attempt in range(_PLACE_ATTEMPTS):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                place(temporary, path)
                break
            except FileNotFoundError:
                if attempt == _PLACE_ATTEMPTS - 1:
                    raise
        _sync(path.parent)

    def _check_root(self) -> None:
        """A root that was there and is gone is an outage: nothing is made anew in its place, and
        nothing counts as absent. Raises StoreUnavailableError."""
        was_there = self._was_there  # before it is looked for: another thread may make it now
        if self._root.is_dir():
            self._was_there = True
        elif was_there or self._root.exists() != self._root.is_dir():
            raise StoreUnavailableError(f"store {self._root} (RAMOLE_STORE_URL) is no folder now")

    def _temporary(self) -> Path:
        self._check_root()
        folder = self._root / _TMP
        folder.mkdir(parents=True, exist_ok=True)
        self._was_there = True
        return folder / secrets.token_hex(12)

    def _written(self, data: bytes) -> Path:
        path = self._temporary()
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # the disk is full: leave nothing
            path.unlink(missing_ok=True)
            raise
        return path

    def _walk(self, folder: Path) -> Iterator[ObjectInfo]:
        try:
            entries = sorted(os.scandir(folder), key=_key_order)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != _TMP:
                    yield from self._walk(Path(entry.path))
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                key = Path(entry.path).relative_to(self._root).as_posix()
                yield ObjectInfo(key, found.st_size, found.st_mtime)

    def _prune(self, folder: Path) -> None:
        """Removes folders that a delete left empty, so that `children` shows no ghosts."""
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
            self._check_root()
            raise NotFoundError(f"{key} is not in the store {self._root}") from e
        except OSError as e:
            if e.errno == errno.ELOOP:
                raise NotFoundError(f"{key} is not in the store {self._root}: a link") from e
            raise StoreUnavailableError(
                f"store {self._root} (RAMOLE_STORE_URL): {e.strerror or e} at {key}"
            ) from e


def _key_order(entry: "os.DirEntry[str]") -> str:
    """Sorts a folder where S3 would: its keys go on with '/'."""
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name


def _sync(path: Path) -> None:
    """What was written to the file or folder is on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
