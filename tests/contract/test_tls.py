"""TLS with an own CA to both outside systems: accepted with it, refused without it."""

import datetime
import ipaddress
import shutil
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from producer.broker import Broker
from ramole_core import messages
from ramole_core.errors import BrokerUnavailableError, ConfigError, StoreUnavailableError
from ramole_core.settings import Settings
from ramole_core.store import open_store
from ramole_core.store.minio import MinioStore
from tests.integration.guarded import guarded_redis, new_passwords
from tests.servers import free_port
from worker.app import make_app
from worker.services import connect


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 (its own CA) and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ramole test")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    crt, pem = folder / "ca.crt", folder / "key.pem"
    crt.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return crt, pem


@pytest.fixture(scope="module")
def s3_over_tls(certificate: tuple[Path, Path]) -> Iterator[str]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", free_port(), app, threaded=True, ssl_context=context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()


def s3_settings(endpoint: str, ca_file: str) -> Settings:
    return Settings.load(
        {},
        store_url=f"s3://over-tls?endpoint={endpoint}",
        store_access_key="a",
        store_secret_key="b",
        store_ca_file=ca_file,
    )


def test_s3_over_tls_needs_the_ca(s3_over_tls: str, certificate: tuple[Path, Path]) -> None:
    store = open_store(s3_settings(s3_over_tls, str(certificate[0])))
    assert isinstance(store, MinioStore)
    store.check()
    store.make_bucket()
    store.put("a", b"b")
    assert store.get("a") == b"b"
    stranger = open_store(s3_settings(s3_over_tls, ""))
    with pytest.raises(StoreUnavailableError, match="certificate"):
        stranger.check()
    with pytest.raises(ConfigError, match="RAMOLE_STORE_CA_FILE"):
        open_store(s3_settings(s3_over_tls, "/no/such/file"))


@pytest.mark.s3
def test_redis_over_tls_with_users_needs_the_ca(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    binary = shutil.which("redis-server")  # the bundled one has no TLS
    if binary is None:
        pytest.skip("no redis-server with TLS")
    port, plain = free_port(), free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no",
               "--tls-cert-file", str(certificate[0]), "--tls-key-file", str(certificate[1]),
               "--tls-ca-cert-file", str(certificate[0])]  # fmt: skip
    passwords = new_passwords()

    def settings(role: str, ca_file: Path | str) -> Settings:
        url = f"rediss://{role}:{passwords[role]}@127.0.0.1:{port}/0"
        return Settings.load({}, broker_url=url, broker_ca_file=str(ca_file))

    with guarded_redis(tmp_path, plain, passwords, *options):
        producer, worker = settings("producer", certificate[0]), settings("worker", certificate[0])
        Broker(producer).check_rights()
        Broker(producer).send(messages.ANSWER, "x")
        assert connect(worker).ping()
        app = make_app(worker)
        app.send_task(messages.ANSWER, args=["x"], queue=messages.CONTROL_QUEUE)
        assert connect(worker).llen(f"{messages.KEY_PREFIX}celery:{messages.CONTROL_QUEUE}") == 2
        with pytest.raises(BrokerUnavailableError, match="certificate"):
            Broker(settings("producer", "")).check()
