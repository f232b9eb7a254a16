"""Two ways to take the store away for a while, and give it back as it was.

A directory gets a file in its place: nothing can be read, and nothing written beside it. An S3
server is reached through a forwarder of ours, which refuses.
"""

import contextlib
import os
import socket
import socketserver
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

S3_VARIABLE: Final = "RAMOLE_TEST_S3_URL"
BLOCK_BYTES: Final = 1 << 16


class StoreCut(Protocol):
    """Takes the store away and gives it back. Each may be called again."""

    def cut(self) -> None:
        """From now on every access fails."""
        ...

    def mend(self) -> None:
        """From now on all is as it was."""
        ...


@dataclass(frozen=True)
class DirectoryCut:
    """A folder that is a file for a while."""

    root: Path

    @property
    def _away(self) -> Path:
        return self.root.with_name(self.root.name + ".away")

    def cut(self) -> None:
        """See StoreCut."""
        if not self._away.exists():
            self.root.rename(self._away)
            self.root.write_bytes(b"")

    def mend(self) -> None:
        """See StoreCut."""
        if self._away.exists():
            self.root.unlink()
            self._away.rename(self.root)


class ForwarderCut:
    """A TCP forwarder to a server, on a port of 127.0.0.1."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server: _Forwarder | None = None
        self.port = 0
        self.mend()

    def cut(self) -> None:
        """See StoreCut: refuses, and ends what is open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.end_all()
            self._server = None

    def mend(self) -> None:
        """See StoreCut."""
        if self._server is None:
            self._server = _Forwarder(("127.0.0.1", self.port), self._target)
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()


class _Forwarder(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], target: tuple[str, int]) -> None:
        self.target = target
        self._open: set[socket.socket] = set()
        super().__init__(address, _Connection)

    @contextlib.contextmanager
    def watched(self, *sockets: socket.socket) -> Iterator[None]:
        """Ended by `end_all` while the block runs."""
        self._open |= set(sockets)
        try:
            yield
        finally:
            self._open -= set(sockets)

    def end_all(self) -> None:
        """Ends every open connection."""
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.BaseRequestHandler):
    server: _Forwarder

    def handle(self) -> None:
        near: socket.socket = self.request
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as far:
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.server.watched(near, far):
                back = threading.Thread(target=_copy, args=(far, near), daemon=True)
                back.start()
                _copy(near, far)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK_BYTES):
            target.sendall(block)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def s3_cut() -> tuple[ForwarderCut, dict[str, str]]:
    """The forwarder to the server that RAMOLE_TEST_S3_URL names, and what workers are to be told.

    Raises SystemExit when it names none.
    """
    url = os.environ.get(S3_VARIABLE)
    if not url:
        raise SystemExit(f"--store s3: set {S3_VARIABLE} to an S3 server's URL (.ci/s3_server.sh)")
    parts: Any = urlsplit(url)
    forwarder = ForwarderCut((parts.hostname, parts.port or 80))
    endpoint = f"http://127.0.0.1:{forwarder.port}"
    return forwarder, {
        "RAMOLE_STORE_URL": f"s3://chaos/{uuid.uuid4().hex}?endpoint={endpoint}",
        "RAMOLE_STORE_ACCESS_KEY": os.environ.get("RAMOLE_STORE_ACCESS_KEY", "testkey123"),
        "RAMOLE_STORE_SECRET_KEY": os.environ.get("RAMOLE_STORE_SECRET_KEY", "testsecret123"),
    }
