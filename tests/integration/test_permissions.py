"""Who may do what in Redis: deploy/redis on a real server. What is needed works without a single
refusal, everything else is refused, and what is no message of ours does no harm."""

import base64
import json
import pickle
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import AuthenticationError, Redis
from redis.exceptions import NoPermissionError

from producer.broker import Broker
from producer.client import Client
from producer.doctor import examine
from ramole_core import messages, zoo
from ramole_core.errors import BrokerUnavailableError
from ramole_core.jobs import JobState
from ramole_core.settings import Settings
from tests.integration.guarded import Guarded, guarded_redis
from tests.integration.system import zoo_prompts
from tests.servers import wait_until

CONTROL = f"{messages.KEY_PREFIX}celery:{messages.CONTROL_QUEUE}"
SHARDS = f"{messages.KEY_PREFIX}celery:{messages.SHARD_QUEUE}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The server alone; workers are the tests' own."""
    found = Guarded(tmp_path_factory.mktemp("guarded"))
    with guarded_redis(found.folder / "redis", found.port, found.passwords):
        yield found


def await_worker(client: Client) -> None:
    wait_until(lambda: len(client.broker.live_workers()) == 1, 60, "a worker")


def test_a_producer_and_a_worker_do_all_they_need_without_a_refusal(guarded: Guarded) -> None:
    guarded.refusals()
    client = guarded.client()
    with guarded.worker("whole") as process:
        await_worker(client)
        for name in ("reverse-zoo", "upper-waiter"):
            client.upload_adapter(zoo.adapter_path(name), name, zoo.samples_path(name))
        prompts = [record["prompt"] for record in zoo_prompts(12)]
        job = client.submit(prompts, job_id="whole", shard_size=3, max_new_tokens=8)
        assert client.status(job.job_id).num_prompts == 12
        assert client.wait(job.job_id, timeout_seconds=60).state is JobState.COMPLETED
        assert len(list(client.results(job.job_id))) == 12
        assert client.search(prompts[0], k=1)
        assert [check.name for check in examine(client.settings) if not check.ok] == []

        client.submit(prompts * 200, job_id="stopped", shard_size=100, adapters=[], priority="low")
        wait_until(lambda: client.status("stopped").num_done > 0, 30, "the first answers")
        assert client.cancel("stopped").state is JobState.CANCELLED
        client.submit(prompts * 200, job_id="handed", shard_size=100, adapters=[])
        assert client.recover("handed") == ["handed"]
        wait_until(lambda: client.status("handed").num_done > 0, 30, "the first answers")
        assert "Traceback" not in guarded.log("whole")
        process.send_signal(signal.SIGTERM)  # hands its messages back
        assert process.wait(timeout=30) == 0
    client.cancel("handed")
    assert guarded.refusals() == []


@pytest.mark.parametrize("role", ["producer", "worker"])
@pytest.mark.parametrize(
    "command",
    ["KEYS *", "SCAN 0", "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET dir /tmp", "ACL LIST",
     "ACL SETUSER producer on nopass +@all ~*", "CLIENT LIST", "CLIENT KILL TYPE normal",
     "SHUTDOWN NOSAVE", "MODULE LIST", "REPLICAOF NO ONE", "SAVE", "MONITOR",
     "CLIENT TRACKING ON BCAST", "PUBLISH x y", "SUBSCRIBE x", "GET other", "SET other 1",
     "DEL other", "RANDOMKEY", "DBSIZE", "SWAPDB 0 1", "FUNCTION LIST", "RENAME ramole:known x",
     "MIGRATE h 1 ramole:known 0 1"],
)  # fmt: skip
def test_nobody_but_the_admin_looks_beyond_our_keys(
    guarded: Guarded, role: str, command: str
) -> None:
    with pytest.raises(NoPermissionError):
        guarded.redis(role).execute_command(*command.split())


@pytest.mark.parametrize(
    "command",
    ["SMEMBERS ramole:known", "ZRANGE ramole:running 0 -1", "HGETALL ramole:owners",
     "HGETALL ramole:job:j:attempts", "LRANGE ramole:job:j:pending 0 -1", "GET ramole:reaped",
     "HSET ramole:job:j:progress 00000 done", "ZADD ramole:workers 9e9 ghost",
     "ZREM ramole:workers w", "DEL ramole:workers", "DEL ramole:job:j:progress", f"DEL {CONTROL}",
     f"LPUSH {SHARDS} x", f"RPOP {CONTROL}", f"BRPOP {CONTROL} 1", f"BRPOP {SHARDS} 1",
     f"LRANGE {CONTROL} 0 -1", f"LREM {CONTROL} 0 x", f"LTRIM {CONTROL} 1 0",
     "EXPIRE ramole:known 1",
     "HGETALL ramole:celery:unacked", "SREM ramole:celery:_kombu.binding.control x",
     "SMEMBERS ramole:celery:_kombu.binding.shards", "SET ramole:cancelled:j 1",
     "SCRIPT LOAD return", "SCRIPT FLUSH"],
)  # fmt: skip
def test_a_producer_neither_reads_the_ledger_nor_takes_out_nor_deletes(
    guarded: Guarded, command: str
) -> None:
    with pytest.raises(NoPermissionError):
        guarded.redis("producer").execute_command(*command.split())


WITHOUT_KEYS = {
    "auth", "echo", "hello", "info", "ping", "quit", "select", "wait", "waitaof",
    "client|caching", "client|capa", "client|import-source", "client|no-touch", "client|reply",
    "client|setinfo", "client|setname", "command|docs", "command|getkeys",
    "command|getkeysandflags", "command|info", "command|list",
}  # fmt: skip
PRODUCERS = {
    CONTROL: {"llen", "lpush"},
    f"{CONTROL}\x06\x165": {"llen"},  # of another priority
    "ramole:celery:_kombu.binding.control": {"sadd"},
    "ramole:celery:_kombu.binding_permanent.control": {"sadd"},
    messages.progress("j"): {"hgetall"},
    messages.WORKERS: {"zrangebyscore"},
    messages.worker("w"): {"get"},
    SHARDS: set(),
    "ramole:celery:unacked": set(),
    "ramole:celery:_kombu.binding.shards": set(),
    "ramole:job:j:attempts": set(),
    "ramole:owners": set(),
    "ramole:known": set(),
}


def allowed(admin: Any, role: str, key: str) -> set[str]:
    """Every command that the server lets the role give with this key, by ACL DRYRUN: the key in
    all places, or behind one or two numbers."""
    names = admin.execute_command("COMMAND LIST")
    tried = [
        (name, ["1"] * numbers + [key] * (count - numbers))
        for name in names
        for numbers in range(3)
        for count in range(numbers + 1, 6)
    ]
    with admin.pipeline(transaction=False) as pipe:
        for name, words in tried:
            pipe.execute_command("ACL DRYRUN", role, *name.split("|"), *words)
        said = pipe.execute(raise_on_error=False)
    return {name for (name, _), answer in zip(tried, said, strict=True) if answer == "OK"}


def test_a_producer_does_with_our_keys_what_it_needs_and_nothing_else(guarded: Guarded) -> None:
    admin = guarded.redis("admin")
    version = admin.info("server")["redis_version"]
    if int(version.split(".")[0]) < 7:
        pytest.skip(f"Redis {version} has no ACL DRYRUN")
    without_keys = allowed(admin, "producer", "somebody's")
    assert without_keys <= WITHOUT_KEYS
    found = {key: allowed(admin, "producer", key) - without_keys for key in PRODUCERS}
    assert found == PRODUCERS


@pytest.mark.parametrize("script", ["return 1", f"return redis.call('DEL', '{CONTROL}')"])
def test_a_producer_runs_no_script(guarded: Guarded, script: str) -> None:
    with pytest.raises(NoPermissionError):
        guarded.redis("producer").eval(script, 0)
    assert guarded.refusals()[0].startswith("producer: ")


def test_nobody_comes_in_without_name_and_password(guarded: Guarded) -> None:
    for user in ("", ":x@", "producer:wrong@", "default:x@"):
        url = f"redis://{user}127.0.0.1:{guarded.port}/0"
        with pytest.raises(AuthenticationError):
            Redis.from_url(url).ping()
        with pytest.raises(BrokerUnavailableError, match="check the user and password in the URL$"):
            Broker(Settings.load({}, broker_url=url)).check()


def test_the_server_s_arguments_environment_and_file_hold_no_password(guarded: Guarded) -> None:
    pid = guarded.redis("admin").info("server")["process_id"]
    shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    users = (guarded.folder / "redis" / "ramole-users.acl").read_bytes()
    assert b"user producer on #" in users
    assert all(secret.encode() not in shown + users for secret in guarded.passwords.values())


def test_an_empty_password_starts_no_server(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "REDIS_ADMIN_PASSWORD": "a"}
    start = Path("deploy/redis/start.sh").absolute()
    done = subprocess.run(["sh", start, "echo", "started"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "empty" in done.stderr


@pytest.mark.parametrize(
    ("rights", "check", "named"),
    [
        ("+@all -lpush ~*", "rights", "LPUSH ramole:celery:control"),
        ("+@all -hgetall ~*", "rights", "HGETALL ramole:job:x:progress"),
        ("+@all ~other:*", "rights", "ZRANGEBYSCORE ramole:workers"),
        ("+@all -multi ~*", "rights", "MULTI"),
        ("+@all -info ~*", "broker", "info"),
    ],
)
def test_the_doctor_names_what_the_acl_refuses(
    guarded: Guarded, rights: str, check: str, named: str
) -> None:
    guarded.redis("admin").execute_command(
        "ACL", "SETUSER", "narrow", "reset", "on", ">narrow", *rights.split()
    )
    env = guarded.environment("producer", RAMOLE_BROKER_URL=guarded.url("narrow", "narrow"))
    waiting = guarded.redis("admin").llen(CONTROL)
    done = subprocess.run(
        [sys.executable, "-m", "producer", "doctor"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 5
    (line,) = [row for row in done.stdout.splitlines() if row.split()[:2] == ["FAIL", check]]
    assert named in line and "users.acl.template" in line and "RAMOLE_BROKER_URL" in line
    assert guarded.redis("admin").llen(CONTROL) == waiting, "a look leaves nothing in the queue"


def test_a_refused_message_says_so(guarded: Guarded) -> None:
    guarded.redis("admin").execute_command(
        "ACL", "SETUSER", "narrow", "reset", "on", ">narrow", "+@all", "-lpush", "~*"
    )
    settings = Settings.load(
        guarded.environment("producer", RAMOLE_BROKER_URL=guarded.url("narrow", "narrow"))
    )
    with pytest.raises(BrokerUnavailableError, match=r"lpush.*users\.acl\.template"):
        Client(settings).broker.send(messages.START_JOB, "j")


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def envelope(task: str, args: list[Any], **changes: Any) -> str:
    """A message as Celery sends it."""
    tag = str(uuid.uuid4())
    body = json.dumps([args, {}, {"callbacks": None, "errbacks": None}]).encode()
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": tag, "root_id": tag, "argsrepr": ""},
        "properties": {
            "correlation_id": tag,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": messages.CONTROL_QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
        **changes,
    }
    return json.dumps(message)


def more_than_ids() -> list[str]:
    """Messages that ask Celery for something: to send others, to wait, to be named otherwise."""
    other = {"task": "chained", "args": ["x"], "kwargs": {}, "options": {"queue": "shards"}}
    embeds: list[Any] = [{"callbacks": [other]}, {"errbacks": [other]}, {"chain": [other]}, 7]
    bodies: list[Any] = [[["x"], {}, embed] for embed in embeds]
    bodies += [[["x"], {"job": "y"}, embeds[1]], {"args": ["x"], "callbacks": [other]}, "text", []]
    asking = []
    for body in bodies:
        encoded = base64.b64encode(json.dumps(body).encode()).decode()
        asking.append(envelope(messages.START_JOB, [], body=encoded))
    headers = {"lang": "py", "task": messages.START_JOB, "id": "1", "shadow": "chained"}
    for name in ("eta", "expires"):
        asking.append(envelope(messages.START_JOB, ["x"], headers={**headers, name: "2999-01-01"}))
    return asking


def test_what_is_no_message_of_ours_is_dropped_and_the_worker_lives(guarded: Guarded) -> None:
    client, trapped = guarded.client(), guarded.folder / "trapped"
    poison = base64.b64encode(pickle.dumps([[Trap(trapped)], {}, {}])).decode()
    pickled = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
    no_messages: list[str | bytes] = [
        "", "garbage", b"\xff\xfe\x00", "[" * 100_000, "null", "7", '"text"', "[]", "{}",
        '{"properties": 1}', '{"properties": {}}', '{"properties": {"delivery_tag": "t"}}',
        '{"body": "!", "properties": {"delivery_tag": "t", "body_encoding": "base64"}}',
    ]  # fmt: skip
    refused: list[str | bytes] = [
        envelope(messages.START_JOB, [], body=poison, **pickled),
        envelope(messages.START_JOB, [], headers=None),
        envelope(messages.START_JOB, [], headers={}),
        envelope("celery.map", [{"task": messages.START_JOB}, [["j"]]]),
        envelope("celery.backend_cleanup", []),
        envelope("celery.chain", []),
        envelope("os.system", ["true"]),
        envelope(messages.START_JOB, ["j", "k", "l"]),
        *more_than_ids(),
    ]
    no_ids = [
        envelope(messages.START_JOB, ["../../etc/passwd"]),
        envelope(messages.START_JOB, [{"job_id": "j"}]),
        envelope(messages.RUN_SHARD, ["../j", "00000"]),
        envelope(messages.RUN_SHARD, ["j", "/etc/passwd"]),
        envelope(messages.REGISTER_ADAPTER, ["s3://elsewhere/adapter"]),
        envelope(messages.ANSWER, ["../replies/x"]),
    ]
    with guarded.worker("dropped") as process:
        await_worker(client)
        admin = guarded.redis("admin")
        for queue in (CONTROL, SHARDS):
            admin.lpush(queue, *no_messages, *refused, *no_ids)
        prompts = [record["prompt"] for record in zoo_prompts(4)]
        client.submit(prompts, job_id="after", max_new_tokens=4, adapters=[])
        assert client.wait("after", timeout_seconds=60).state is JobState.COMPLETED
        wait_until(lambda: admin.hlen("ramole:celery:unacked") == 0, 20, "all is acknowledged")
        assert admin.llen(CONTROL) == 0 and admin.llen(SHARDS) == 0
        assert process.poll() is None
    log = guarded.log("dropped")
    assert not trapped.exists(), "a pickle was loaded"
    assert log.count("is no message and is dropped") == 2 * len(no_messages)
    assert log.count("message dropped: ") == 2 * len(no_ids)
    assert "celery.map" in log and "os.system" in log
    assert "chained" not in log, "a message's link was followed"
