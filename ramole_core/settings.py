"""The settings of one process: built once from the environment and `ramole.toml`, then passed on.

The environment wins over `<home>/ramole.toml`. Unknown names and bad values raise ConfigError
with the value, the limit and the variable to set. Secrets stay out of `repr`.
"""

import difflib
import hashlib
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from ramole_core.errors import ConfigError, printable

PREFIX: Final = "RAMOLE_"
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_BROKER_URL: Final = re.compile(r"(redis|rediss|unix)://\S+")
MAX_SOCKET_PATH_BYTES: Final = 100
SPARE_THREADS: Final = 4  # of a worker, for uploads, searches and new jobs


def _text(value: str) -> str:
    return value


def _broker_url(value: str) -> str:
    """One that `redacted` knows from its first to its last character."""
    if not _BROKER_URL.fullmatch(value):
        raise ValueError("a redis://, rediss:// or unix:// URL; write a blank in it as %20")
    return value


def _ca_file(value: str) -> str:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except ssl.SSLError:
        raise ValueError("a PEM file of the CA: there is no certificate in it") from None
    except OSError as e:
        raise ValueError(f"a PEM file of the CA: {e.strerror}") from None
    return value


def _list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return read


def _number(
    kind: type[int] | type[float], low: float, high: float, or_zero: bool = False
) -> Callable[[str], float]:
    def read(value: str) -> float:
        problem = ValueError(f"{'0 or ' * or_zero}a number from {low} to {high}")
        try:
            number = kind(value)
        except ValueError:
            raise problem from None
        if not (low <= number <= high or (or_zero and number == 0)):
            raise problem
        return number

    return read


def _setting(default: Any, read: Callable[[str], Any], doc: str, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"read": read, "doc": doc})


@dataclass(frozen=True)
class Settings:
    """Every setting; the README's table is checked against this class."""

    home: Path = field(
        default=Path(".ramole"),
        metadata={"read": Path, "doc": "data folder: embedded broker and store, caches, logs"},
    )
    broker_url: str = _setting(
        "",
        _broker_url,
        "redis://, rediss:// or unix:// URL; empty: the embedded broker under the home",
        secret=True,
    )
    store_url: str = _setting(
        "", _text, "a directory, or s3://bucket/prefix?endpoint=https://host; empty: under the home"
    )
    store_access_key: str = _setting("", _text, "S3 access key", secret=True)
    store_secret_key: str = _setting("", _text, "S3 secret key", secret=True)
    store_region: str = _setting("us-east-1", _text, "S3 region")
    store_ca_file: str = _setting("", _ca_file, "PEM file of the CA that signed the S3 certificate")
    broker_ca_file: str = _setting(
        "", _ca_file, "PEM file of the CA that signed Redis' certificate"
    )
    model: str = _setting("", _text, "base model: a folder or a hub id; empty: the built-in zoo")
    model_aliases: tuple[str, ...] = _setting(
        (), _list, "other names (comma separated) that adapters may give for the base model"
    )
    encoder: str = _setting(
        "all-MiniLM-L6-v2", _text, "sentence encoder: the packaged one, a folder, or a hub id"
    )
    encoder_prefix: str = _setting(
        "", _text, "instruction put before every text that is embedded (for instructed encoders)"
    )
    device: str = _setting("auto", _text, "auto, cpu, cuda, cuda:1 …")
    dtype: str = _setting(
        "auto",
        _one_of("auto", "float32", "bfloat16", "float16"),
        "number format of the model; auto: by the device and the model's width",
    )
    cuda_graphs: str = _setting(
        "on", _one_of("on", "off"), "on CUDA devices: record decoding steps and replay them"
    )
    batch_size: int = _setting(32, _number(int, 1, 4096), "prompts decoded together at most")
    max_batch_tokens: int = _setting(
        0,
        _number(int, 256, 1 << 30, or_zero=True),
        "prompt and answer tokens of one batch at most; 0: as many as the free memory allows",
    )
    batch_interval_seconds: float = _setting(
        0.01, _number(float, 0, 10), "how long a free engine waits for more prompts"
    )
    bank_size: int = _setting(64, _number(int, 1, 65536), "adapters on the device at most")
    torch_threads: int = _setting(
        0, _number(int, 0, 1024), "CPU threads of the engine; 0: one per core"
    )
    concurrency: int = _setting(32, _number(int, 4, 1024), "task threads of a worker process")
    shards_in_flight: int = _setting(
        8,
        _number(int, 1, 512),
        "shards queued or running per worker (normal priority: twice, high: three times as many)",
    )
    max_attempts: int = _setting(
        3,
        _number(int, 1, 100),
        "times a shard may be begun, or a prompt may kill its process, before it fails",
    )
    shard_seconds: float = _setting(
        21600.0, _number(float, 1, 1e7), "how long a shard may run before what is left of it fails"
    )
    lease_seconds: float = _setting(
        8.0, _number(float, 1, 3600), "a shard is taken from a worker silent for this long"
    )
    reaper_seconds: float = _setting(
        3.0, _number(float, 0.1, 600), "how often lost shards are looked for"
    )
    registry_seconds: float = _setting(
        2.0, _number(float, 0.1, 600), "how often a worker looks for new adapters"
    )
    max_adapter_bytes: int = _setting(
        1 << 30, _number(int, 1024, 1 << 40), "largest adapter file accepted"
    )
    max_adapter_rank: int = _setting(256, _number(int, 1, 4096), "largest LoRA rank accepted")
    log_level: str = _setting(
        "info", _one_of("debug", "info", "warning", "error"), "what is logged at least"
    )

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> "Settings":
        """Reads environment and `<home>/ramole.toml`; `overrides` (already typed) win over both."""
        env = os.environ if env is None else env
        known = {f.name: f for f in fields(cls)}
        given = {k: v for k, v in env.items() if k.startswith(PREFIX) and v != ""}
        values: dict[str, Any] = {}
        home = Path(overrides.get("home") or given.get(PREFIX + "HOME") or cls.home)
        for name, text in _read_toml(home / "ramole.toml").items():
            values[name] = _read_value(known, name, text, f"{home / 'ramole.toml'}: {name}")
        for variable, text in given.items():
            if variable.startswith(PREFIX + "TEST_"):
                continue
            name = variable.removeprefix(PREFIX).lower()
            values[name] = _read_value(known, name, text, variable)
        values |= {name: value for name, value in overrides.items() if value is not None}
        values["home"] = home.absolute()
        return cls(**values)._checked()

    def _checked(self) -> "Settings":
        least = 3 * self.shards_in_flight + SPARE_THREADS
        if self.concurrency < least:
            raise ConfigError(
                f"RAMOLE_CONCURRENCY={self.concurrency}: must be at least {least}, three times "
                f"RAMOLE_SHARDS_IN_FLIGHT={self.shards_in_flight} and {SPARE_THREADS} for the rest"
            )
        if self.lease_seconds < 2 * self.reaper_seconds:  # else every round looks like a pause
            raise ConfigError(
                f"RAMOLE_LEASE_SECONDS={self.lease_seconds:g}: must be at least twice "
                f"RAMOLE_REAPER_SECONDS={self.reaper_seconds:g}, or lost shards would wait for ever"
            )
        return self

    @property
    def embedded_broker(self) -> bool:
        """True when `ramole up` is to start the broker itself."""
        return not self.broker_url

    @property
    def socket_path(self) -> Path:
        """The embedded broker's unix socket: in the home, or in a short private folder."""
        path = self.home / "broker.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"ramole-{os.getuid()}-{digest}" / "broker.sock"

    @property
    def redis_url(self) -> str:
        """The broker's URL as redis-py takes it (may hold a password: do not print)."""
        return self.broker_url or f"unix://{quote(str(self.socket_path))}"

    @property
    def celery_url(self) -> str:
        """The broker's URL as kombu takes it (may hold a password: do not print)."""
        if self.redis_url.startswith("unix://"):
            return "redis+socket://" + self.redis_url.removeprefix("unix://").replace(
                "?db=", "?virtual_host="
            )
        return self.redis_url

    @property
    def store_location(self) -> str:
        """The store's URL or folder, never empty."""
        return self.store_url or str(self.home / "store")


def redacted(text: str) -> str:
    """`text` with every URL in it cut down to scheme, host and path: for messages and logs.

    A URL ends at the first blank; settings take none with a blank in it.
    """
    return _URL.sub(lambda found: _without_secrets(found.group()), text)


def _without_secrets(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme == "unix":
        address, _, query = url.removeprefix("unix://").partition("?")
        user, _, path = address.rpartition("@")  # redis-py takes unix://user:password@/path
        if "@" in query:  # a password with ? in it
            return f"{scheme}://***"
        return f"{scheme}://" + ("***@" if user else "") + path
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:  # a password with / ? or # in it
        return f"{scheme}://***"
    secret, _, host = parts.netloc.rpartition("@")
    return f"{scheme}://" + ("***@" if secret else "") + host + parts.path


def _read_toml(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            return {name: _as_text(value) for name, value in tomllib.load(file).items()}
    except FileNotFoundError:
        return {}
    except NotADirectoryError as e:
        raise ConfigError(f"the data folder {path.parent} is no folder") from e
    except (ValueError, RecursionError, OSError) as e:  # not TOML, not UTF-8, endless digits
        raise ConfigError(f"{path}: not a readable TOML file: {printable(str(e))}") from e


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_value(known: Mapping[str, Any], name: str, text: str, where: str) -> Any:
    where = printable(where)
    if name not in known or (name == "home" and not where.startswith(PREFIX)):
        near = difflib.get_close_matches(name, known.keys() - {name})
        shown = [PREFIX + n.upper() if where.startswith(PREFIX) else n for n in near]
        meant = f"did you mean {' or '.join(shown)}?" if near else "the README lists them all"
        raise ConfigError(f"{where}: no such setting; {meant}")
    try:
        return known[name].metadata["read"](text)
    except ValueError as e:
        given = f"={text[:80]!r}" if known[name].repr else ""
        raise ConfigError(f"{where}{given}: must be {e}") from e


def describe() -> list[tuple[str, str, str]]:
    """(variable, default, meaning) of every setting, for `--help` and the README's table."""
    return [
        (
            PREFIX + f.name.upper(),
            "" if f.default is MISSING else _shown(f.default),
            str(f.metadata["doc"]),
        )
        for f in fields(Settings)
    ]


def _shown(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)
