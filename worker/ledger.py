"""The ledger: who works on which shard, in Redis. A cache of the store, rebuilt from it at will.

Every transition is one Lua script (ledger.lua), so two workers never both own a shard, an attempt
is counted before the work, and a lease that ran out is taken back. A wipe takes no shard from the
worker that has it. Nothing here decides what is true: an output in the store is done whatever the
ledger says. See OPERATIONS: claims with fences.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from redis import Redis

from ramole_core import messages
from ramole_core.jobs import Priority

_P: Final = messages.KEY_PREFIX
KNOWN: Final = f"{_P}known"
DISPATCHED: Final = f"{_P}dispatched"
RUNNING: Final = f"{_P}running"
OWNERS: Final = f"{_P}owners"
FINALISING: Final = f"{_P}finalising"
CANCELLED: Final = f"{_P}cancelled"
REAPER_LOCK: Final = f"{_P}lock:reaper"
SCAN_LOCK: Final = f"{_P}lock:scan"
_SCRIPT_KEYS: Final = [KNOWN, DISPATCHED, RUNNING, OWNERS, FINALISING]
CANCELLED_TTL_SECONDS: Final = 24 * 3600
TRIES_TTL_SECONDS: Final = 24 * 3600
RPUSH_CHUNK: Final = 1000


@dataclass(frozen=True)
class ShardRef:
    """One shard of one job."""

    job_id: str
    shard: str

    @property
    def member(self) -> str:
        """How sorted sets and hashes name it."""
        return f"{self.job_id}/{self.shard}"

    @classmethod
    def from_member(cls, member: str) -> "ShardRef":
        """The inverse of `member`."""
        job_id, _, shard = member.partition("/")
        return cls(job_id, shard)


@dataclass(frozen=True)
class Claim:
    """A shard that this worker owns until its lease runs out. `token` is the fence."""

    ref: ShardRef
    attempt: int  # the number of its note in the store
    token: str  # of this claim alone
    exhausted: bool  # begun too often: its prompts are to fail
    count: int = 0  # how often the shard was begun, this time included


class Ledger:
    """The ledger's operations. Raises redis.RedisError when Redis is out of reach."""

    def __init__(self, redis: Redis, worker: str, lease_seconds: float, about: str = "") -> None:
        self._redis = redis
        self._worker = worker
        self.about = about  # messages.AboutWorker as JSON, goes with every heartbeat
        self._lease_ms = int(lease_seconds * 1000)
        source = files("worker").joinpath("ledger.lua").read_text()
        self._script = redis.register_script(source)

    def adopt(
        self,
        job_id: str,
        priority: Priority,
        num_shards: int,
        pending: Sequence[str],
        done: Iterable[str],
        attempts: Mapping[str, Iterable[int]],
    ) -> bool:
        """Takes a job in, from what the store says. False when it is known already.

        A pending shard with `attempts` (the numbers of its notes) may be in the hands of a worker
        that the ledger has forgotten: it is sent when half a lease passed without a beat for it.
        """
        waiting = [shard for shard in pending if shard not in attempts]
        begun = [ShardRef(job_id, shard).member for shard in pending if shard in attempts]
        tokens = {shard: json.dumps(dict.fromkeys(found, "")) for shard, found in attempts.items()}
        with self._redis.lock(f"{_P}lock:adopt:{job_id}", timeout=60):
            if self._redis.sismember(KNOWN, job_id) or self.is_cancelled(job_id):
                return False
            lease_ends = self._now_ms() + self._lease_ms // 2
            with self._redis.pipeline(transaction=True) as pipe:
                for part in ("pending", "done", "attempts", "progress"):
                    pipe.delete(_job_key(job_id, part))
                for start in range(0, len(waiting), RPUSH_CHUNK):
                    pipe.rpush(_job_key(job_id, "pending"), *waiting[start : start + RPUSH_CHUNK])
                if begun:
                    pipe.zadd(RUNNING, dict.fromkeys(begun, lease_ends))
                if ready := list(done):
                    pipe.sadd(_job_key(job_id, "done"), *ready)
                if tokens:
                    pipe.hset(_job_key(job_id, "attempts"), mapping=dict[Any, Any](tokens))
                pipe.hset(
                    _job_key(job_id, "job"),
                    mapping={"num_shards": num_shards, "priority": priority},
                )
                pipe.sadd(KNOWN, job_id)
                pipe.rpush(f"{_P}ring:{priority}", job_id)
                if not pending:
                    pipe.sadd(FINALISING, job_id)
                pipe.execute()
        if self.is_cancelled(job_id):  # in the meantime
            self.forget(job_id)
            return False
        return True

    def claim(self, ref: ShardRef, max_attempts: int) -> Claim | str:
        """A claim; or why not: `unknown` (adopt the job first), `foreign` (the job has no such
        shard), `done`, `busy`, `cancelled`."""
        token = f"{self._worker}:{secrets.token_hex(4)}"  # by it the script knows a second sending
        verdict, attempt, count = self._run(
            "claim", ref.job_id, ref.shard, token, self._lease_ms, max_attempts
        )
        if verdict not in ("run", "exhausted"):
            return str(verdict)
        return Claim(ref, attempt, token, verdict == "exhausted", count)

    def renew(self, claims: Sequence[Claim]) -> list[Claim]:
        """The heartbeat: extends the leases; returns the claims that are no longer ours."""
        pairs = [part for claim in claims for part in (claim.ref.member, claim.token)]
        lost = self._run("renew", self._lease_ms, self._worker, self.about, *pairs)
        return [claims[int(i)] for i in lost]

    def release(self, claim: Claim) -> bool:
        """Gives a shard and its attempt back, when its message is queued again (drain)."""
        return bool(self._run("release", *_words(claim)))

    def pardon(self, claim: Claim) -> bool:
        """Gives the attempt of a dead worker, or of an outage, back, whoever has the shard now. A
        lease that the claim still holds ends: the reaper sends the shard again."""
        return bool(self._run("pardon", *_words(claim)))

    def finish(self, ref: ShardRef, num_ok: int, num_failed: int) -> bool:
        """Marks a shard whose output lies in the store. True when the whole job is done."""
        text = f"done {num_ok} {num_failed}"
        return bool(self._run("finish", ref.job_id, ref.shard, text))

    def report(self, ref: ShardRef, num_ok: int, num_failed: int) -> None:
        """How far a running shard is, for progress bars only."""
        self._run("report", ref.job_id, ref.shard, f"run {num_ok} {num_failed}")

    def next_shard(self, per_worker: int) -> tuple[ShardRef, Priority] | None:
        """The next shard to enqueue, round-robin over the jobs of the highest priority.

        None when nothing waits, or when as much is in flight as `per_worker` shards for each live
        worker (twice that for normal, three times for high priority).
        """
        found = self._run("next", per_worker, int(messages.ALIVE_SECONDS * 1000))
        return None if found is None else (ShardRef(found[0], found[1]), found[2])

    def priority(self, job_id: str) -> Priority:
        """The job's priority; normal when the ledger has forgotten it."""
        value = self._redis.hget(_job_key(job_id, "job"), "priority")
        return value if value in ("low", "high") else "normal"  # type: ignore[return-value]

    def overdue(self, queued: Mapping[Priority, int], grace_seconds: float) -> list[ShardRef]:
        """Shards to enqueue again: their lease ran out, or their message is lost."""
        grace_ms = int(grace_seconds * 1000)
        high, normal, low = queued["high"], queued["normal"], queued["low"]
        members = self._run("overdue", grace_ms, self._lease_ms, high, normal, low)
        return [ShardRef.from_member(m) for m in members]

    def cancel(self, job_id: str) -> None:
        """Forgets the job and tells the workers that hold its shards to let go."""
        self._redis.set(f"{CANCELLED}:{job_id}", 1, ex=CANCELLED_TTL_SECONDS)
        self._run("forget", job_id)

    def is_cancelled(self, job_id: str) -> bool:
        """True when `cancel` was called for the job within the last day."""
        return bool(self._redis.exists(f"{CANCELLED}:{job_id}"))

    def forget(self, job_id: str) -> None:
        """Drops everything known of an ended job."""
        self._run("forget", job_id)

    def known(self, job_ids: Sequence[str]) -> list[bool]:
        """For each job whether the ledger has it."""
        return [bool(x) for x in self._redis.smismember(KNOWN, list(job_ids))] if job_ids else []

    def is_whole(self, job_id: str) -> bool:
        """False when the ledger has lost shards of the job, or never had it."""
        return bool(self._run("whole", job_id))

    def finalising(self) -> list[str]:
        """Jobs with all shards done whose final record may still be missing."""
        return sorted(map(str, self._redis.smembers(FINALISING)))

    def progress(self, job_id: str) -> dict[str, str]:
        """Shard -> `done OK FAILED` or `run OK FAILED`."""
        found = self._redis.hgetall(messages.progress(job_id))
        return {str(shard): str(state) for shard, state in found.items()}

    def leave(self) -> None:
        """Takes this worker off the list (a clean stop)."""
        self._redis.zrem(messages.WORKERS, self._worker)

    def num_queued(self) -> dict[Priority, int]:
        """Messages waiting in the shard queue's lists, one list per priority."""
        prefix = f"{_P}celery:{messages.SHARD_QUEUE}"
        return {
            priority: int(self._redis.llen(f"{prefix}\x06\x16{step}" if step else prefix))
            for priority, step in messages.PRIORITY.items()
        }

    def try_lock(self, name: str, seconds: float) -> bool:
        """Takes a lock that runs out by itself, or is freed by `unlock`."""
        return bool(self._redis.set(name, self._worker, nx=True, px=int(seconds * 1000)))

    def count_try(self, upload_id: str, step: int = 1) -> int:
        """How often an upload was begun in the last day, this time included; -1 takes one back."""
        key = f"{_P}upload:{upload_id}:tries"
        tries = int(self._redis.incrby(key, step))
        self._redis.expire(key, TRIES_TTL_SECONDS)
        return tries

    def extend_lock(self, name: str, seconds: float) -> None:
        """Gives a lock that this worker took so much time from now on."""
        if self._redis.get(name) == self._worker:
            self._redis.pexpire(name, int(seconds * 1000))

    def unlock(self, name: str) -> None:
        """Frees a lock that this worker took (one that ran out may be another's by now)."""
        if self._redis.get(name) == self._worker:
            self._redis.delete(name)

    def _now_ms(self) -> int:
        seconds, microseconds = self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def _run(self, operation: str, *arguments: Any) -> Any:
        return self._script(keys=_SCRIPT_KEYS, args=[operation, *arguments])


def _words(claim: Claim) -> tuple[str, str, int, str]:
    return claim.ref.job_id, claim.ref.shard, claim.attempt, claim.token


def _job_key(job_id: str, part: str) -> str:
    return f"{_P}job:{job_id}:{part}"
