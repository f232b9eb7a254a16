"""What a worker process is at, in a file that outlives it.

Every process keeps a record under `<home>/journals/`: the shards that it holds, which of them are
being prepared (read, embedded, tokenised), and the prompts whose step is about to run. The record
is replaced, as a whole, when one of these changes; the lock beside it is held for as long as the
process lives. So whoever can take that lock has found a death, and what it was at
(`worker.deaths`). A clean stop removes both.
Nothing is synchronised to the disk: after the death of a machine the record may be an older one, or
gone, and what it names is charged all the same. A journal that cannot be written is logged and
removed, and stops nothing.
"""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ramole_core.errors import RamoleError
from ramole_core.jobs import checked_name
from worker.ledger import Claim, ShardRef

logger = logging.getLogger(__name__)

RECORD, LOCK, FRESH = ".json", ".lock", ".new"
MAX_RECORD_BYTES: Final = 1 << 24


@dataclass(frozen=True)
class PromptRef:
    """One prompt of one job, as the engine's tag. `alone`: it is to run with nobody beside it,
    while nothing is prepared."""

    job_id: str
    index: int
    alone: bool = False


@dataclass(frozen=True)
class Record:
    """What a process was at. `preparing`: those of the claims whose texts were being read, embedded
    or tokenised."""

    worker: str
    claims: tuple[Claim, ...] = ()
    preparing: tuple[Claim, ...] = ()
    running: tuple[PromptRef, ...] = ()


class Journal:
    """This process's record; any thread may write."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._path = folder / f"{worker}{RECORD}"
        self._worker = worker
        self._lock = threading.Lock()  # guards all below
        self._claims: set[Claim] = set()
        self._preparing: set[Claim] = set()
        self._embedding: dict[str, frozenset[Claim]] = {}
        self._running: frozenset[PromptRef] = frozenset()
        self._file = -1
        self._failed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(FRESH)
            self._file = os.open(fresh, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(self._path.with_suffix(LOCK))  # found with its lock taken, or not at all
        except OSError as e:
            self._release()
            self._complain(e)

    def holding(self, claim: Claim) -> AbstractContextManager[None]:
        """The claim is this process's until the block ends."""
        return self._listed(self._claims, claim)

    def preparing(self, claim: Claim) -> AbstractContextManager[None]:
        """The block reads the claim's shard, or has its prompts tokenised."""
        return self._listed(self._preparing, claim)

    def embedding(self, encoder: str, claims: frozenset[Claim]) -> None:
        """Whose texts an encoder embeds from now on. Never raises."""
        with self._lock:
            self._embedding[encoder] = claims
            self._write()

    def running(self, tags: frozenset[Hashable]) -> None:
        """The prompts whose step is about to run (the engine's `on_running`). Never raises."""
        with self._lock:
            self._running = frozenset(tag for tag in tags if isinstance(tag, PromptRef))
            self._write()

    def close(self) -> None:
        """A clean stop: nothing to look into."""
        with self._lock, suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(FRESH).unlink(missing_ok=True)
            self._path.with_suffix(LOCK).unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextmanager
    def _listed(self, claims: set[Claim], claim: Claim) -> Iterator[None]:
        with self._lock:
            claims.add(claim)
            self._write()
        try:
            yield
        finally:
            with self._lock:
                claims.discard(claim)
                self._write()

    def _write(self) -> None:
        """The lock is held. Never raises: the engine's step is no place for it. Without its lock
        file nobody would find the record, or remove it."""
        if self._file < 0:
            return
        fresh = self._path.with_suffix(FRESH)
        try:
            fresh.write_text(json.dumps(self._record()))
            os.replace(fresh, self._path)
        except Exception as e:
            for path in (self._path, fresh):  # what was true before would charge the wrong ones
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            self._complain(e)

    def _record(self) -> dict[str, Any]:
        preparing = self._preparing.union(*self._embedding.values())
        return {
            "worker": self._worker,
            "claims": [_row(claim) for claim in self._claims],
            "preparing": [_row(claim) for claim in preparing],
            "running": [[ref.job_id, ref.index, ref.alone] for ref in self._running],
        }

    def _complain(self, error: Exception) -> None:
        if not self._failed:
            logger.warning("a crash will be charged to whole shards, no journal: %s", error)
        self._failed = True


@contextmanager
def found_dead(folder: Path) -> Iterator[list[Record]]:
    """The records of processes that died; they are gone when the block ends without an error."""
    held: list[tuple[int, Path]] = []
    try:
        records = []
        for path in sorted(folder.glob(f"*{LOCK}")) if folder.is_dir() else ():
            file = _locked(path)
            if file is not None:
                held.append((file, path))
                records += _read(path.with_suffix(RECORD))
        yield records
        for _, path in held:
            for suffix in (RECORD, FRESH, LOCK):  # the lock last: cut before it, all is found anew
                path.with_suffix(suffix).unlink(missing_ok=True)
    finally:
        for file, _ in held:
            os.close(file)


def _locked(path: Path) -> int | None:
    """The open lock file, when nobody else holds it."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _read(path: Path) -> list[Record]:
    """The record; none where there is none, or it is damaged."""
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError("too large")
        raw: Any = json.loads(path.read_text())
        record = Record(
            worker=checked_name("worker", raw["worker"]),
            claims=tuple(map(_claim, raw["claims"])),
            preparing=tuple(map(_claim, raw["preparing"])),
            running=tuple(map(_prompt, raw["running"])),
        )
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError, RamoleError) as e:
        logger.warning("journal %s is damaged and ignored: %s", path.name, e)
        return []
    return [record]


def _prompt(row: list[Any]) -> PromptRef:
    job_id, index, alone = row
    if type(alone) is not bool:
        raise ValueError("neither alone nor not")
    return PromptRef(checked_name("job", job_id), _count(index), alone)


def _row(claim: Claim) -> list[Any]:
    return [claim.ref.job_id, claim.ref.shard, claim.attempt, claim.token]


def _claim(row: list[Any]) -> Claim:
    job_id, shard, attempt, token = row
    ref = ShardRef(checked_name("job", job_id), checked_name("shard", shard))
    return Claim(ref, _count(attempt), _text(token), exhausted=False)


def _count(value: Any) -> int:
    """It becomes part of an object key."""
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError("not a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value
