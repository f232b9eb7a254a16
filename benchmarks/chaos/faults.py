"""Commits the faults of a script on a running embedded system.

Nothing of the product knows of it: processes get signals, Redis is emptied, the store is taken
away. What a fault orphaned is written down as a Strike.
"""

import heapq
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis import Redis, RedisError

from benchmarks.chaos.cuts import StoreCut
from benchmarks.chaos.pool import CONTENTS, MOVER, upload_mover
from benchmarks.chaos.script import Fault
from producer.client import Client
from producer.embedded.lock import Holder, OwnerLock
from ramole_core.errors import NotFoundError, RamoleError

RETRY_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 60.0
REDIS_SECONDS: Final = 2.0

ShardName = tuple[str, str]  # job, shard


@dataclass(frozen=True)
class Strike:
    """What a fault may have orphaned: the shards a worker held, or (None) all without output.

    `at`: Unix time from which recovery counts: of what lasts, and lets nobody work, its end.
    """

    kind: str
    at: float
    shards: frozenset[ShardName] | None


class Villain:
    """Commits faults, one script per instance. `strikes`: what they did."""

    def __init__(self, client: Client, store: StoreCut) -> None:
        self.strikes: list[Strike] = []
        self.count: dict[str, int] = {}
        self._client = client
        self._settings = client.settings
        self._store = store
        self._lock = OwnerLock(client.settings.home)
        self._began = time.monotonic()
        self._later: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._frozen: set[int] = set()
        self._beside: list[threading.Thread] = []
        self._num_changes = 0
        self._counting = threading.Lock()
        self._deeds: dict[str, Callable[[Fault], None]] = {
            "worker_kill": self._kill_worker,
            "worker_freeze": self._freeze_worker,
            "redis_kill": self._kill_redis,
            "redis_freeze": self._freeze_redis,
            "redis_wipe": self._wipe,
            "redis_wipe_recover": self._wipe,
            "store_cut": self._cut,
            "registry_change": self._change_registry,
        }

    def run(self, faults: Sequence[Fault]) -> None:
        """All faults at their times, and the end of those that last."""
        self._began = time.monotonic()
        for fault in faults:
            self._pass_time(self._began + fault.at)
            self._deeds[fault.kind](fault)
        while self._later:
            self._pass_time(self._later[0][0])
        for thread in self._beside:
            thread.join(PATIENCE_SECONDS)

    def make_good(self) -> None:
        """Thaws what is frozen and mends the store, however far the script is."""
        for pid in list(self._frozen):
            self._thaw(pid)
        self._store.mend()

    def _pass_time(self, moment: float) -> None:
        while self._later and self._later[0][0] <= moment:
            when, _, action = heapq.heappop(self._later)
            time.sleep(max(0.0, when - time.monotonic()))
            action()
        time.sleep(max(0.0, moment - time.monotonic()))

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        moment = time.monotonic() + seconds
        heapq.heappush(self._later, (moment, id(action), action))

    def _strike(self, kind: str, shards: frozenset[ShardName] | None = None) -> None:
        self.strikes.append(Strike(kind, time.time(), shards))
        self._count(kind)

    def _count(self, kind: str) -> None:
        with self._counting:
            self.count[kind] = self.count.get(kind, 0) + 1

    def _kill_worker(self, fault: Fault) -> None:
        pid, claims = self._worker(fault)
        _signal(pid, signal.SIGKILL)
        self._strike(fault.kind, claims)
        self._say(f"worker {pid} is killed, {len(claims)} shards in hand")

    def _freeze_worker(self, fault: Fault) -> None:
        pid, claims = self._worker(fault)
        self._frozen.add(pid)
        self._strike(fault.kind, claims)
        self._say(f"worker {pid} is frozen for {fault.seconds:.1f} s, {len(claims)} shards in hand")
        self._in(fault.seconds, lambda: self._thaw(pid))

    def _kill_redis(self, fault: Fault) -> None:
        pid = self._broker_pid()
        _signal(pid, signal.SIGKILL)
        self._strike(fault.kind)
        self._say(f"Redis {pid} is killed")

    def _freeze_redis(self, fault: Fault) -> None:
        pid = self._broker_pid()
        self._say(f"Redis {pid} is frozen for {fault.seconds:.1f} s")
        _signal(pid, signal.SIGSTOP)
        self._frozen.add(pid)

        def end() -> None:
            self._thaw(pid)
            self._strike(fault.kind)

        self._in(fault.seconds, end)

    def _wipe(self, fault: Fault) -> None:
        """As soon as Redis answers."""
        try:
            with Redis.from_url(self._settings.redis_url, socket_timeout=REDIS_SECONDS) as redis:
                redis.flushall()
        except RedisError:
            self._in(RETRY_SECONDS, lambda: self._wipe(fault))
            return
        self._strike(fault.kind)
        self._say("Redis is wiped")
        if fault.kind == "redis_wipe_recover":
            self._try_beside(lambda client: len(client.recover()), "jobs to recover")

    def _cut(self, fault: Fault) -> None:
        self._store.cut()
        self._say(f"the store is away for {fault.seconds:.1f} s")

        def end() -> None:
            self._store.mend()
            self._strike(fault.kind)

        self._in(fault.seconds, end)

    def _change_registry(self, fault: Fault) -> None:
        """In turn: one content, the other, none."""
        turn = self._num_changes % (len(CONTENTS) + 1)
        self._num_changes += 1
        if turn == len(CONTENTS):
            self._try_beside(_remove_mover, f"{MOVER} removed", fault.kind)
        else:
            content = CONTENTS[turn]
            upload = lambda client: upload_mover(client, content, wait=False)  # noqa: E731
            self._try_beside(upload, f"{content} uploaded", fault.kind)

    def _try_beside(
        self, action: Callable[[Client], object], said: str, kind: str | None = None
    ) -> None:
        """In a thread, with a client of its own, until it is through and counts as `kind`."""

        def run() -> None:
            client = Client(self._settings)
            limit = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < limit:
                try:
                    result = action(client)
                except RamoleError:
                    time.sleep(RETRY_SECONDS)
                    continue
                if kind is not None:
                    self._count(kind)
                return self._say(f"{said}{'' if result is None else f': {result}'}")
            return self._say(f"given up: {said}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._beside.append(thread)

    def _worker(self, fault: Fault) -> tuple[int, frozenset[ShardName]]:
        """A worker, if there is one that holds shards, and those. It stands still from here on."""
        held = {pid: self._claims(pid) for pid in sorted(self._holder().worker_pids)}
        awake = [pid for pid in held if pid not in self._frozen] or list(held)
        pids = [pid for pid in awake if held[pid]] or awake
        if not pids:
            time.sleep(RETRY_SECONDS)
            return self._worker(fault)
        pid = pids[fault.pick % len(pids)]
        _signal(pid, signal.SIGSTOP)
        return pid, self._claims(pid)

    def _claims(self, pid: int) -> frozenset[ShardName]:
        """What the worker holds, from its crash journal: attempt notes are deleted when a worker
        dies, and Redis may be away."""
        found: set[ShardName] = set()
        for path in Path(self._settings.home, "journals").glob(f"*-{pid}-*.json"):
            with suppress(OSError, ValueError):
                found |= {(row[0], row[1]) for row in json.loads(path.read_text())["claims"]}
        return frozenset(found)

    def _broker_pid(self) -> int:
        """Of Redis, once its supervisor has started it again."""
        while (pid := self._holder().broker_pid) is None:
            time.sleep(RETRY_SECONDS)
        return pid

    def _holder(self) -> Holder:
        holder = self._lock.await_holder()
        assert holder is not None, "the supervisor runs"
        return holder

    def _thaw(self, pid: int) -> None:
        _signal(pid, signal.SIGCONT)
        self._frozen.discard(pid)

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {what}", file=sys.stderr, flush=True)


def _remove_mover(client: Client) -> None:
    with suppress(NotFoundError):  # its uploads are on their way
        client.remove_adapter(MOVER)


def _signal(pid: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
