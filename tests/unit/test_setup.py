"""deploy/s3: the policies are well-formed, and setup.py asks a MinIO server for what it should.

No MinIO runs here: a stand-in takes the requests, decrypts what the client encrypted and notes it.
"""

import importlib.util
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from minio.crypto import decrypt
from urllib3 import HTTPResponse

from ramole_core import keys
from tests.s3_roles import BELOW

ROOT = Path(__file__).parents[2]
S3 = ROOT / "deploy" / "s3"
ENV = {
    "RAMOLE_BUCKET": "mine",
    "MINIO_ROOT_USER": "root-user",
    "MINIO_ROOT_PASSWORD": "S3CRET-root",
    **{f"S3_{role}_KEY": f"key-{role.lower()}" for role in ("WORKER", "PRODUCER", "OPERATOR")},
    **{f"S3_{role}_SECRET": f"S3CRET-{role}" for role in ("WORKER", "PRODUCER", "OPERATOR")},
}


@dataclass
class Server:
    """What was asked: (method, path, query, body)."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    status: int = 200

    def of(self, command: str) -> list[tuple[dict[str, str], bytes]]:
        path = f"/minio/admin/v3/{command}"
        return [(query, body) for method, at, query, body in self.asked if at == path]


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
            found.asked.append((self.command, parts.path, query, body))
            missing = self.command == "HEAD" and parts.path == "/mine"
            self.send_response(404 if missing else found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{httpd.server_port}"
    yield found
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def setup(server: Server, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name, value in {**ENV, "S3_ENDPOINT": server.url}.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("setup_s3", S3 / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(body: bytes) -> dict[str, Any]:
    response = HTTPResponse(body=io.BytesIO(body), preload_content=False)
    return dict(json.loads(decrypt(response, "S3CRET-root")))


def test_setup_makes_bucket_policies_and_users(
    server: Server, setup: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.main() == 0
    assert ("PUT", "/mine") in [(method, path) for method, path, _, _ in server.asked]
    policies = {query["name"]: json.loads(body) for query, body in server.of("add-canned-policy")}
    for role in ("producer", "worker", "operator"):
        text = (S3 / f"{role}-policy.json").read_text()
        assert policies[f"ramole-{role}"] == json.loads(text.replace(":::ramole", ":::mine"))
    users = {query["accessKey"]: plain(body) for query, body in server.of("add-user")}
    assert users["key-producer"] == {"status": "enabled", "secretKey": "S3CRET-PRODUCER"}
    attached = {q["userOrGroup"]: q["policyName"] for q, _ in server.of("set-user-or-group-policy")}
    assert attached == {f"key-{r}": f"ramole-{r}" for r in ("producer", "worker", "operator")}
    assert "S3CRET" not in "".join(capsys.readouterr()) + str([q for _, _, q, _ in server.asked])


def test_setup_that_is_refused_fails_in_one_line(
    server: Server, setup: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = 403
    assert setup.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("setup: ") and said.count("\n") == 1 and "S3CRET" not in said


@pytest.mark.parametrize("role", ["producer", "worker", "operator"])
def test_a_policy_names_our_bucket_only_and_allows_no_wildcard_action(role: str) -> None:
    policy = json.loads((S3 / f"{role}-policy.json").read_text())
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert statement["Effect"] in ("Allow", "Deny")
        assert all(a.startswith("s3:") and "*" not in a for a in statement["Action"])
        for resource in statement["Resource"]:
            assert resource == "arn:aws:s3:::ramole" or resource.startswith("arn:aws:s3:::ramole/")


LIST_READ_WRITE = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"}


@pytest.mark.parametrize(
    ("role", "actions"),
    [
        ("producer", LIST_READ_WRITE),
        ("worker", LIST_READ_WRITE | {"s3:DeleteObject"}),
        ("operator", LIST_READ_WRITE | {"s3:DeleteObject"}),
    ],
)
def test_a_policy_allows_nothing_but_to_list_read_write_and_delete(
    role: str, actions: set[str]
) -> None:
    statements = json.loads((S3 / f"{role}-policy.json").read_text())["Statement"]
    assert {a for s in statements if s["Effect"] == "Allow" for a in s["Action"]} == actions
    for statement in statements:
        on_bucket = statement["Resource"] == ["arn:aws:s3:::ramole"]
        assert on_bucket == (statement["Action"] == ["s3:ListBucket"])


def allowed(role: str, action: str, key: str) -> bool:
    """As AWS and MinIO decide: a `*` spans `/`, and whoever is denied is not allowed."""
    statements = json.loads((S3 / f"{role}-policy.json").read_text())["Statement"]
    effects = {
        statement["Effect"]
        for statement in statements
        if action in statement["Action"]
        and any(fnmatchcase(f"arn:aws:s3:::ramole/{key}", r) for r in statement["Resource"])
    }
    return effects == {"Allow"}


@pytest.mark.parametrize("key", BELOW)
def test_a_producer_writes_nothing_below_what_workers_write(key: str) -> None:
    """Radosgw, on which the rest is tested, refuses it by itself: its `*` ends at `/`."""
    assert not allowed("producer", "s3:PutObject", key)
    for own in (keys.manifest("output"), keys.cancelled("deaths"), keys.input_shard("j", "s", "0")):
        assert allowed("producer", "s3:PutObject", own)
