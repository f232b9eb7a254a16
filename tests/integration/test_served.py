"""Served mode: the compose file's own commands and environment on a Redis with the users of
deploy/redis and a real S3 server with the policies of deploy/s3. What compose resolves by host name
is replaced by addresses of this machine."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from producer.client import Client
from producer.doctor import examine
from ramole_core import zoo
from ramole_core.errors import BrokerUnavailableError, StoreUnavailableError
from ramole_core.jobs import JobState
from ramole_core.settings import Settings
from tests.contract.test_object_store import real_endpoint
from tests.integration.guarded import guarded_redis, new_passwords
from tests.integration.system import kill, worker_process, zoo_prompts
from tests.s3_roles import ROLES, guarded_bucket
from tests.servers import free_port, wait_until
from tests.unit.test_compose import compose, example_env

__all__ = ["real_endpoint"]

pytestmark = pytest.mark.s3


@dataclass
class Served:
    """A Redis and an S3 server, and how workers are started beside them."""

    services: dict[str, Any]
    replaced: dict[str, str]
    folder: Path
    port: int
    passwords: dict[str, str]

    def environment(self, service: str) -> dict[str, str]:
        """The service's environment as compose gives it, with this machine's addresses."""
        given = {k: str(v) for k, v in self.services[service]["environment"].items()}
        for old, new in self.replaced.items():
            given = {k: v.replace(old, new) for k, v in given.items()}
        home = self.folder / service
        home.mkdir(exist_ok=True)
        return {k: v for k, v in given.items() if v} | {"RAMOLE_HOME": str(home)}

    def client(self, service: str = "producer") -> Client:
        return Client(Settings.load(self.environment(service)))

    def admin(self) -> Redis:
        return Redis(port=self.port, username="admin", password=self.passwords["admin"])

    def worker(self, name: str) -> AbstractContextManager["subprocess.Popen[bytes]"]:
        """One replica of the compose service `worker`."""
        command = list(self.services["worker"]["command"])
        assert command[0] == "python"
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAMOLE_")}
        env = outside | self.environment("worker") | {"RAMOLE_TORCH_THREADS": "1"}
        return worker_process(command[1:], env, self.folder / f"{name}.log")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


@pytest.fixture
def served(tmp_path: Path, real_endpoint: str) -> Iterator[Served]:
    port, passwords = free_port(), new_passwords()
    bucket, _ = guarded_bucket(real_endpoint)
    keys = {f"S3_{role.upper()}_{part}": f"{role}-{part.lower()}"
            for role in ROLES for part in ("KEY", "SECRET")}  # fmt: skip
    secrets = {f"REDIS_{role.upper()}_PASSWORD": text for role, text in passwords.items()}
    env = example_env() | keys | secrets | {"RAMOLE_BUCKET": bucket}
    replaced = {"@redis:6379": f"@127.0.0.1:{port}", "http://minio:9000": real_endpoint}
    with guarded_redis(tmp_path / "redis", port, passwords):
        yield Served(compose(env)["services"], replaced, tmp_path, port, passwords)


def test_two_workers_answer_a_job_and_survive_each_others_death(served: Served) -> None:
    records = zoo_prompts(60)
    with served.worker("w0") as first, served.worker("w1"):
        client = served.client()
        wait_until(lambda: len(client.broker.live_workers()) == 2, 60, "two workers")
        for name in sorted({record["adapter"] for record in records})[:8]:
            client.upload_adapter(zoo.adapter_path(name), name, zoo.samples_path(name))
        job = client.submit([r["prompt"] for r in records], shard_size=6, max_new_tokens=32)
        wait_until(lambda: client.status(job.job_id).num_done > 0, 30, "the first answers")
        kill(first.pid)
        status = client.wait(job.job_id, timeout_seconds=60)
        assert status.state is JobState.COMPLETED
        results = list(client.results(job.job_id))
        assert [r.index for r in results] == list(range(60))
        assert all(len(r.adapters) == 3 for r in results)
        (best,) = client.search(records[0]["prompt"], k=1)
        with pytest.raises(StoreUnavailableError, match="AccessDenied"):
            client.remove_adapter(best.name)
        assert served.client("operator").remove_adapter(best.name, any_owner=True)
        assert [check.name for check in examine(client.settings) if not check.ok] == []
        assert served.admin().acl_log() == []
    logs = served.log("w0") + served.log("w1")
    assert not any(secret in logs for secret in [*served.passwords.values(), "worker-secret"])
    assert "Traceback" not in logs


def test_sigterm_hands_the_shards_back_and_another_worker_finishes_them(served: Served) -> None:
    prompts = [record["prompt"] for record in zoo_prompts(48)] * 40  # some ten seconds
    with served.worker("w0") as first:
        client = served.client()
        wait_until(lambda: len(client.broker.live_workers()) == 1, 60, "a worker")
        job = client.submit(prompts, shard_size=64, max_new_tokens=48, adapters=[])
        wait_until(lambda: client.status(job.job_id).num_done > 0, 30, "the first answers")
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=30) == 0
        assert not client.status(job.job_id).state.ended
    with served.worker("w1"):
        status = client.wait(job.job_id, timeout_seconds=90)
        assert status.state is JobState.COMPLETED
        assert [r.index for r in client.results(job.job_id)] == list(range(len(prompts)))


def test_a_wiped_redis_loses_no_job(served: Served) -> None:
    prompts = [record["prompt"] for record in zoo_prompts(60)] * 10
    with served.worker("w0"):
        client = served.client()
        wait_until(lambda: len(client.broker.live_workers()) == 1, 60, "a worker")
        job = client.submit(prompts, shard_size=16, max_new_tokens=32, adapters=[])
        wait_until(lambda: client.status(job.job_id).num_shards_done > 0, 30, "a shard")
        assert not client.status(job.job_id).state.ended
        served.admin().flushall()
        status = client.wait(job.job_id, timeout_seconds=90)
        assert status.state is JobState.COMPLETED
        assert [r.index for r in client.results(job.job_id)] == list(range(len(prompts)))


def test_a_wrong_password_is_one_error_that_does_not_show_it(served: Served) -> None:
    env = served.environment("producer")
    env["RAMOLE_BROKER_URL"] = env["RAMOLE_BROKER_URL"].replace(
        served.passwords["producer"], "not-it"
    )
    with pytest.raises(BrokerUnavailableError, match="RAMOLE_BROKER_URL") as caught:
        Client(Settings.load(env)).broker.check()
    assert "not-it" not in str(caught.value)
