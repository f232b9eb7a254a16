"""docker-compose.yml against the compose specification and against our own settings."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ramole_core.settings import Settings, describe
from ramole_core.store import open_store
from ramole_core.store.minio import MinioStore

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::?[-?]([^}]*))?\}")


def example_env() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(env: dict[str, str]) -> dict[str, Any]:
    """The file as compose reads it: YAML with merge keys, then variables replaced in its texts."""

    def variable(match: re.Match[str]) -> str:
        name, fallback = match.group(1), match.group(2)
        if env.get(name):
            return env[name]
        required = match.group(0)[2 + len(name) :].startswith((":?", "?"))
        assert not required, f"{name} is required and .env.example does not set it"
        return fallback or ""

    def replaced(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: replaced(value) for key, value in node.items()}
        if isinstance(node, list):
            return [replaced(value) for value in node]
        return VARIABLE.sub(variable, node) if isinstance(node, str) else node

    return dict(replaced(yaml.safe_load(TEXT)))


@pytest.fixture
def services() -> dict[str, Any]:
    return compose(example_env())["services"]


def test_the_file_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(compose(example_env()))


def test_every_variable_stands_in_the_example_and_every_example_is_used() -> None:
    used = {match.group(1) for match in VARIABLE.finditer(TEXT)}
    assert used == set(example_env())


def test_every_ramole_variable_is_a_setting(services: dict[str, Any]) -> None:
    known = {variable for variable, _, _ in describe()}
    for name in ("worker", "worker-gpu", "producer", "operator"):
        given = {k for k in services[name]["environment"] if k.startswith("RAMOLE_")}
        assert given <= known


def test_workers_and_producers_reach_the_ports_that_redis_and_minio_open(
    services: dict[str, Any],
) -> None:
    environment = services["worker"]["environment"]
    settings = Settings.load(environment, home=None)
    assert settings.redis_url == "redis://worker:change-me-redis-worker@redis:6379/0"
    assert any(p.endswith(":6379") for p in services["redis"]["ports"])
    store = open_store(settings)
    assert isinstance(store, MinioStore)
    assert "endpoint=http://minio:9000" in settings.store_url
    assert any(p.endswith(":9000") for p in services["minio"]["ports"])
    assert services["minio"]["command"][:2] == ["server", "/data"]


def test_all_published_ports_are_on_loopback(services: dict[str, Any]) -> None:
    ports = [p for service in services.values() for p in service.get("ports", [])]
    assert ports and all(p.startswith("127.0.0.1:") for p in ports)


def test_redis_keeps_its_queue_and_starts_with_its_users(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    for words in ("sh /deploy/start.sh docker-entrypoint.sh", "--appendonly yes", "noeviction"):
        assert words in command
    assert {"redis-data:/data", "./deploy/redis:/deploy:ro"} <= set(services["redis"]["volumes"])


def test_each_role_has_credentials_of_its_own_and_no_secret_is_an_argument(
    services: dict[str, Any],
) -> None:
    roles = {"worker": "worker", "producer": "producer", "operator": "producer"}  # their Redis user
    for name, user in roles.items():
        given = services[name]["environment"]
        assert given["RAMOLE_BROKER_URL"].startswith(f"redis://{user}:change-me-redis-{user}@")
        assert given["RAMOLE_STORE_ACCESS_KEY"] == name
        assert given["RAMOLE_STORE_SECRET_KEY"] == f"change-me-s3-{name}"
        assert services[name]["depends_on"]["setup"]["condition"].endswith("successfully")
    for service in services.values():
        for part in ("command", "entrypoint", "healthcheck", "build"):
            assert "change-me" not in str(service.get(part, ""))
    root = [name for name, s in services.items() if "MINIO_ROOT_PASSWORD" in str(s["environment"])]
    assert sorted(root) == ["minio", "setup"]


def test_no_secret_is_there_twice() -> None:
    secrets = [v for k, v in example_env().items() if k.endswith(("_PASSWORD", "_SECRET"))]
    assert len(secrets) == 7 and len(set(secrets)) == 7


def test_the_worker_scales_and_is_stopped_gently(services: dict[str, Any]) -> None:
    worker = services["worker"]
    assert worker["command"] == ["python", "-m", "worker"]
    assert "container_name" not in worker and "ports" not in worker
    assert worker["stop_signal"] == "SIGTERM"
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert services["worker-gpu"]["environment"]["RAMOLE_DEVICE"] == "cuda"


def test_what_a_worker_was_at_outlives_its_container(services: dict[str, Any]) -> None:
    for name in ("worker", "worker-gpu"):
        home = services[name]["environment"]["RAMOLE_HOME"]
        assert f"worker-data:{home}" in services[name]["volumes"]
    assert "worker-data" in compose(example_env())["volumes"]


def test_the_image_copies_what_the_package_needs() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    targets = re.findall(r"^FROM \S+ AS (\w+)", dockerfile, re.M)
    built = {s["build"]["target"] for s in compose(example_env())["services"].values()
             if "build" in s}  # fmt: skip
    assert built == set(targets)
    for name in re.findall(r"^COPY (.+?) \S+$", dockerfile, re.M):
        assert all((ROOT / part).exists() for part in name.split()), name
