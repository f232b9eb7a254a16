"""The product side: one job through producer, Redis, worker process and store."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.end_to_end.pools import Pool
from producer.client import Client
from producer.embedded.lock import OwnerLock
from ramole_core import keys, zoo
from ramole_core.errors import TimedOutError
from ramole_core.jobs import parse_time
from ramole_core.store.base import get_json

LOOK_SECONDS: Final = 0.01  # a look is one `stat`: what a user's polling adds is not measured
LIMIT_SECONDS: Final = 1800.0


@dataclass(frozen=True)
class ThroughRound:
    """The answers, and when what had happened, in seconds from the submission.

    `submitted`: the producer has returned. `begun`: a worker has taken up a shard. `first_stored`,
    `last_stored`: an output lies in the store. `seconds`: so does the job's final record.
    `cpu_seconds`: of all threads of the worker.
    """

    texts: list[str]
    submitted: float
    begun: float
    first_stored: float
    last_stored: float
    seconds: float
    cpu_seconds: float


def upload(client: Client, pool: Pool) -> None:
    """All adapters of the pool, each as version 1."""
    for name, folder in pool.adapters.items():
        client.upload_adapter(folder, name, zoo.samples_path(name))


def run_job(client: Client, prompts: list[str], max_new_tokens: int) -> ThroughRound:
    """Submits the prompts and waits for the end. Raises SystemExit when a prompt has no answer."""
    began, cpu = time.time(), _worker_cpu_seconds(client)
    job_id = client.submit(prompts, max_new_tokens=max_new_tokens).job_id
    submitted = time.time()
    _wait_for(client, keys.finished(job_id))
    ended, cpu = time.time(), _worker_cpu_seconds(client) - cpu
    results = list(client.results(job_id))
    if failed := [result.error for result in results if result.error is not None]:
        raise SystemExit(f"{len(failed)} prompts failed: {failed[0]}")
    begun, stored = _begun(client, job_id), _stored(client, job_id)
    return ThroughRound(
        texts=[result.text or "" for result in results],
        submitted=submitted - began,
        begun=min(begun) - began,
        first_stored=min(stored) - began,
        last_stored=max(stored) - began,
        seconds=ended - began,
        cpu_seconds=cpu,
    )


def _wait_for(client: Client, key: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not client.store.exists(key):
        if time.monotonic() > deadline:
            raise TimedOutError(f"{key} is not there after {LIMIT_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)


def _begun(client: Client, job_id: str) -> list[float]:
    """Unix times at which shards were taken up."""
    notes = [entry.key for entry in client.store.entries(keys.attempts(job_id))]
    return [parse_time(str(get_json(client.store, key)["at"])).timestamp() for key in notes]


def _stored(client: Client, job_id: str) -> list[float]:
    """Unix times at which outputs were stored."""
    return [entry.modified_seconds for entry in client.store.entries(keys.outputs(job_id))]


def _worker_cpu_seconds(client: Client) -> float:
    holder = OwnerLock(client.settings.home).holder()
    assert holder is not None, "the system runs"
    return sum(map(_cpu_seconds, holder.worker_pids))


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
