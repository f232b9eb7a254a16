"""MinIO, or any S3 server, as object store.

URL: `s3://bucket/prefix?endpoint=https://host:port`. Conditional creation is a single PUT with
`If-None-Match: *`, so objects made by `create` must fit one PUT (they are shards and small JSON).
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from ramole_core.errors import ConfigError, NotFoundError, StoreUnavailableError, TooLargeError
from ramole_core.settings import Settings
from ramole_core.store.base import ObjectInfo, checked_key, local_file, too_large

logger = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 30.0
QUICK_SECONDS: Final = 4.0
SLOW_SECONDS: Final = 2.0  # for an object of some kilobytes
SLOW_AGAIN_SECONDS: Final = 60.0
CREATE_ATTEMPTS: Final = 5
MAX_SINGLE_PUT_BYTES: Final = 64 << 20
_MISSING: Final = {"NoSuchKey", "NoSuchObject", "NotFound"}
_EXISTS: Final = {"PreconditionFailed", "ConditionalRequestConflict"}
_CREDENTIALS: Final = "; check RAMOLE_STORE_ACCESS_KEY and RAMOLE_STORE_SECRET_KEY"
_HINTS: Final = {
    "AccessDenied": "; the policy of this access key refuses it (deploy/s3 has those that work)",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "NoSuchBucket": "; a worker makes it at start, or make it by hand",
}


class MinioStore:
    """ObjectStore over one bucket and prefix of an S3 server."""

    def __init__(
        self, client: Minio, bucket: str, prefix: str, endpoint: str, tls: dict[str, Any]
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._endpoint = endpoint
        self._tls = tls
        self._said_slow = float("-inf")

    @classmethod
    def from_settings(cls, settings: Settings) -> "MinioStore":
        """Builds the client; connects at the first call. Raises ConfigError."""
        parts = urlsplit(settings.store_url)
        endpoint = urlsplit(parse_qs(parts.query).get("endpoint", ["https://s3.amazonaws.com"])[0])
        if not parts.netloc or endpoint.scheme not in ("http", "https") or not endpoint.netloc:
            raise ConfigError("RAMOLE_STORE_URL: use s3://bucket/prefix?endpoint=https://host:port")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc.rpartition("@")[2]):
            raise ConfigError(
                "RAMOLE_STORE_URL: a bucket's name has 3 to 63 of a-z, 0-9, '.' and '-'"
            )
        if "@" in parts.netloc + endpoint.netloc:
            raise ConfigError(
                "RAMOLE_STORE_URL: no credentials in the URL; "
                "use RAMOLE_STORE_ACCESS_KEY and RAMOLE_STORE_SECRET_KEY"
            )
        tls = _tls(settings)
        client = Minio(
            endpoint=endpoint.netloc,
            access_key=settings.store_access_key or None,
            secret_key=settings.store_secret_key or None,
            secure=endpoint.scheme == "https",
            region=settings.store_region,
            http_client=_http_client(tls),
        )
        prefix = parts.path.strip("/")
        shown = f"{endpoint.scheme}://{endpoint.netloc}"
        return cls(client, parts.netloc, f"{prefix}/" if prefix else "", shown, tls)

    def get(self, key: str) -> bytes:
        """See ObjectStore."""
        with self._quick(key):
            response = self._client.get_object(
                bucket_name=self._bucket, object_name=self._name(key)
            )
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        with self._quick(key):
            self._put(key, data, {})

    def create(self, key: str, data: bytes) -> bool:
        """See ObjectStore. A retried PUT may meet its own success as 412: the content decides."""
        if len(data) > MAX_SINGLE_PUT_BYTES:
            raise TooLargeError(
                f"{key}: {len(data)} bytes are over the {MAX_SINGLE_PUT_BYTES} of one "
                "conditional PUT; submit with a smaller --shard-size"
            )
        with self._quick(key):
            for _ in range(CREATE_ATTEMPTS):
                try:
                    self._put(key, data, {"If-None-Match": "*"})
                    return True
                except S3Error as e:
                    if e.code not in _EXISTS:
                        raise
                with suppress(NotFoundError):  # 409: a concurrent writer that may yet fail
                    return self.get(key) == data
        raise StoreUnavailableError(f"{key}: {self._endpoint} keeps answering 409 to its creation")

    def exists(self, key: str) -> bool:
        """See ObjectStore."""
        try:
            with self._quick(key):
                self._client.stat_object(bucket_name=self._bucket, object_name=self._name(key))
        except NotFoundError:
            return False
        return True

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        with self._translated(prefix):
            for item in self._listed(prefix, recursive=True):
                modified = item.last_modified.timestamp() if item.last_modified else 0.0
                key = item.object_name.removeprefix(self._prefix)
                yield ObjectInfo(key, item.size or 0, modified)

    def children(self, prefix: str) -> list[str]:
        """See ObjectStore."""
        with self._translated(prefix):
            names = (
                item.object_name.removeprefix(self._prefix + prefix).strip("/")
                for item in self._listed(prefix, recursive=False)
            )
            return sorted({name for name in names if name})

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with self._quick(key):
            self._client.remove_object(bucket_name=self._bucket, object_name=self._name(key))

    def upload(self, path: Path, key: str) -> None:
        """See ObjectStore."""
        with self._translated(key), local_file(path):
            self._client.fput_object(
                bucket_name=self._bucket, object_name=self._name(key), file_path=str(path)
            )

    def download(self, key: str, path: Path, max_bytes: int | None = None) -> None:
        """See ObjectStore."""
        with self._translated(key), local_file(path):
            self._client.fget_object(
                bucket_name=self._bucket,
                object_name=self._name(key),
                file_path=str(path),
                progress=None if max_bytes is None else _AtMost(max_bytes, key),
            )

    def check(self) -> None:
        """See ObjectStore."""
        quick = urllib3.PoolManager(timeout=QUICK_SECONDS, retries=False, **self._tls)
        with self._translated("bucket"):
            # Any HTTP answer will do: what is asked is whether a server is there at all.
            quick.request("GET", self._endpoint + "/", preload_content=True)

    def make_bucket(self) -> None:
        """Makes the bucket when it is missing (workers do at start, where the policy lets them)."""
        with self._translated("bucket"):
            if not self._client.bucket_exists(bucket_name=self._bucket):
                self._client.make_bucket(bucket_name=self._bucket)

    def _put(self, key: str, data: bytes, headers: dict[str, str]) -> None:
        # put_object cannot send If-None-Match; `_put_object` is what it calls for a single part.
        all_headers: Any = {"Content-Type": "application/octet-stream", **headers}
        self._client._put_object(self._bucket, self._name(key), data, all_headers)

    @contextmanager
    def _quick(self, key: str) -> Iterator[None]:
        """As `_translated`, of a call that moves little: if it takes long, the log says so."""
        began = time.monotonic()
        with self._translated(key):
            yield
        now = time.monotonic()
        if now - began > SLOW_SECONDS and now - self._said_slow > SLOW_AGAIN_SECONDS:
            self._said_slow = now
            logger.warning(
                "store %s bucket %s is slow: %.1f s for %s",
                self._endpoint, self._bucket, now - began, key,
            )  # fmt: skip

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        where = f"store {self._endpoint} bucket {self._bucket} (RAMOLE_STORE_URL)"
        try:
            yield
        except S3Error as e:
            if e.code in _MISSING:
                raise NotFoundError(f"{key} is not in {where}") from e
            hint = _HINTS.get(e.code or "", "")
            said = f" at {key}" if e.code == "AccessDenied" else f": {e.message}"
            raise StoreUnavailableError(f"{where}: {e.code}{said}{hint}") from e
        except (MinioException, urllib3.exceptions.HTTPError) as e:
            raise StoreUnavailableError(f"{where}: {_cause(e)}") from e

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _listed(self, prefix: str, recursive: bool) -> Any:
        return self._client.list_objects(
            bucket_name=self._bucket, prefix=self._prefix + prefix, recursive=recursive
        )


class _AtMost:
    """A progress bar to the client's eyes; ends a download whose answer is too long."""

    def __init__(self, max_bytes: int, key: str) -> None:
        self._left, self._error = max_bytes, too_large(key, max_bytes)

    def set_meta(self, object_name: str, total_length: int) -> None:
        """Called with the Content-Length, before a file is opened."""
        if total_length > self._left:
            raise self._error

    def update(self, length: int) -> None:
        """Called with the bytes of every part: an answer need not say its length."""
        self._left -= length
        if self._left < 0:
            raise self._error


def _tls(settings: Settings) -> dict[str, Any]:
    path = settings.store_ca_file
    if path and not Path(path).is_file():
        raise ConfigError(f"RAMOLE_STORE_CA_FILE={path}: no such file")
    return {"cert_reqs": "CERT_REQUIRED", "ca_certs": path or None}


def _http_client(tls: dict[str, Any]) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(
            total=2, backoff_factor=0.3, status_forcelist=[500, 502, 503, 504], allowed_methods=None
        ),
        maxsize=64,
        **tls,
    )


def _cause(error: BaseException) -> str:
    """One short line: urllib3's own texts nest three levels of repr."""
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {str(reason).rsplit(': ', 1)[-1]}"[:200]
