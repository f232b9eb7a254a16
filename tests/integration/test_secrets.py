"""No secret comes out: not in an output, an error, a log, a file or a process' arguments."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.embedded.control import start_detached, stop
from ramole_core import zoo
from ramole_core.settings import Settings
from tests.integration.guarded import Guarded, guarded_redis
from tests.integration.system import RAMOLE, zoo_prompts
from tests.servers import free_port, wait_until

MARK = "S3CRET"  # every secret of these tests begins with it
S3_SECRETS = {"RAMOLE_STORE_ACCESS_KEY": "somebody", "RAMOLE_STORE_SECRET_KEY": f"{MARK}-store"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    found = Guarded(tmp_path)
    with guarded_redis(found.folder / "redis", found.port, found.passwords):
        yield found


@pytest.fixture
def forbidding() -> Iterator[str]:
    """An S3 server that refuses everything, in words of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def said(env: dict[str, str], *words: str, command: tuple[str, ...] = RAMOLE) -> str:
    """All that a command prints."""
    done = subprocess.run(
        [*command, *words], env=env, input=b'{"prompt": "a"}\n', capture_output=True, timeout=120
    )
    return (done.stdout + done.stderr).decode()


def everything_below(folder: Path) -> str:
    """All files' content: logs, locks, stores."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "".join(path.read_bytes().decode(errors="replace") for path in files)


def arguments(pid: int) -> str:
    """What `ps` shows of a process and all below it."""
    shown = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return shown + "".join(arguments(int(child)) for child in below)


def test_a_working_system_shows_none(guarded: Guarded) -> None:
    env = guarded.environment(
        "worker",
        RAMOLE_LOG_LEVEL="debug",
        RAMOLE_LEASE_SECONDS="3",
        RAMOLE_REAPER_SECONDS="1",
        **S3_SECRETS,
    )
    command = [*RAMOLE, "up", "--detach", "--json"]
    out = said(env, command=tuple(command))
    settings = Settings.load(env)
    try:
        holder = int(out.partition('"pid":')[2].partition(",")[0])
        shown = arguments(holder)
        assert "worker" in shown
        client = guarded.client()
        client.upload_adapter(
            zoo.adapter_path("reverse-zoo"), "reverse-zoo", zoo.samples_path("reverse-zoo")
        )
        prompts = [record["prompt"] for record in zoo_prompts(4)]
        client.submit(prompts, job_id="j", max_new_tokens=4)
        client.wait("j", timeout_seconds=60)
        producer = guarded.environment("producer", **S3_SECRETS)
        out += said(producer, "submit", "-", "--json", "--wait")
        for words in ("status j", "results j", "jobs", "search x", "doctor", "adapters list"):
            out += said(producer, *words.split(), *([] if "results" in words else ["--json"]))
        assert '"state":"completed"' in out and '"ok":true' in out

        admin = guarded.redis("admin")  # shut out for a while, as by a changed password
        admin.execute_command("ACL", "SETUSER", "worker", "off")
        admin.client_kill_filter(user="worker", skipme=True)
        logs = settings.home / "logs"
        for said_so in ("not renewed", "Cannot connect to"):  # ours, Celery's
            wait_until(lambda text=said_so: text in everything_below(logs), 30, said_so)  # type: ignore[misc]
        admin.execute_command("ACL", "SETUSER", "worker", "on")
        out += everything_below(logs)
    finally:
        stop(settings)
    assert "worker ready" in out
    for text in (out, shown, everything_below(guarded.folder)):
        assert MARK not in text


def test_servers_that_refuse_or_are_away_show_none(guarded: Guarded, forbidding: str) -> None:
    away = f"127.0.0.1:{free_port()}"
    out = ""
    for url in (guarded.url("producer", f"{MARK}-wrong"), f"redis://u:{MARK}-pw@{away}/0",
                f"rediss://u:{MARK}-pw@{away}/0", f"http://u:{MARK}-pw@{away}/0",
                f"redis://u:{MARK}-p/w#?@{away}/0"):  # fmt: skip
        env = guarded.environment("producer", RAMOLE_BROKER_URL=url, **S3_SECRETS)
        out += said(env, "doctor", "--json")
    out += said(env, "submit", "-", "--json")
    for host in (forbidding, away):
        env = guarded.environment(
            "producer", RAMOLE_STORE_URL=f"s3://bucket?endpoint=http://{host}", **S3_SECRETS
        )
        for words in ("doctor --json", "submit -"):
            out += said(env, *words.split())
    assert "RAMOLE_BROKER_URL" in out and "RAMOLE_STORE_URL" in out and "refused" in out
    worker = (sys.executable, "-m", "worker")
    wrong = guarded.environment(
        "worker", RAMOLE_BROKER_URL=guarded.url("worker", f"{MARK}-wrong"), RAMOLE_LOG_LEVEL="debug"
    )
    refused = guarded.environment(
        "worker", RAMOLE_STORE_URL=f"s3://bucket?endpoint=http://{forbidding}", **S3_SECRETS
    )
    for env in (wrong, refused):
        text = said(env, command=worker)
        assert "cannot start" in text
        out += text
    assert MARK not in out + everything_below(guarded.folder)


def test_the_embedded_system_shows_none(home: Path) -> None:
    outside = {k: v for k, v in os.environ.items() if not k.startswith("RAMOLE_")}
    env = {**outside, "RAMOLE_HOME": str(home), **S3_SECRETS}
    settings = Settings.load(env)
    assert MARK not in repr(settings)
    argv = [sys.executable, "-m", "tests.unit.producer.run_up", str(home), "1"]
    holder = start_detached(settings, argv, timeout_seconds=30, env=env)
    try:
        shown = arguments(holder.pid)
        assert "broker.sock" in shown and "fake_worker" in shown
    finally:
        stop(settings)
    assert MARK not in shown + everything_below(home)
