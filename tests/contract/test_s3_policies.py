"""The policies of deploy/s3 on a real S3 server: what a role needs works, the rest is refused."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from minio import Minio
from minio.error import S3Error

from ramole_core import keys
from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import NotFoundError, StoreUnavailableError
from ramole_core.store.minio import MinioStore
from tests.contract.test_object_store import real_endpoint
from tests.s3_roles import BELOW, guarded_bucket, put_as_owner, store_of

__all__ = ["real_endpoint"]

pytestmark = pytest.mark.s3

REF = AdapterRef("a", 1)
PRODUCERS_OWN = [
    keys.live("j"), keys.manifest("j"), keys.input_shard("j", "s", "00000"), keys.cancelled("j"),
    keys.cancelling("j"), keys.request("r"), keys.staging("u") + "upload.json", "probes/p",
]  # fmt: skip
WORKERS_OWN = [
    keys.BASE, keys.activation(1), keys.output_shard("j", "00000"), keys.attempt("j", "00000", 1),
    keys.death("j", 0, "alone-w"), keys.finished("j"), keys.adapter(REF) + "claim.json",
    keys.adapter(REF) + "adapter_model.safetensors", keys.adapter(REF) + "card.json",
    keys.registry_entry(1), keys.vector("e", REF), keys.reply("u"),
]  # fmt: skip
TRAINED = [
    keys.encoder_card("e"), keys.encoder_files("e") + "m.safetensors", keys.router("r") + "r.json",
]  # fmt: skip
REMOVALS = [keys.tombstone(REF), keys.registry_entry(2), keys.activation(2)]
WORKERS_REMOVALS = [
    keys.live("j"), keys.cancelling("j"), keys.staging("u") + "upload.json",
    keys.attempt("j", "00000", 1),
]  # fmt: skip


@dataclass
class Guarded:
    """One bucket, everything in it, and its owner."""

    endpoint: str
    bucket: str
    owner: Minio

    def store(self, role: str) -> MinioStore:
        return store_of(role, self.endpoint, self.bucket)


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Guarded]]:
    yield {}


@pytest.fixture
def guarded(real_endpoint: str, bucket: dict[str, Guarded]) -> Guarded:
    """The module's bucket, holding one object under every key."""
    if not bucket:
        name, owner = guarded_bucket(real_endpoint)
        bucket["made"] = Guarded(real_endpoint, name, owner)
    found = bucket["made"]
    for key in {*PRODUCERS_OWN, *WORKERS_OWN, *TRAINED}:
        put_as_owner(found.owner, found.bucket, key)
    return found


def refused(call: Callable[[], object]) -> bool:
    with pytest.raises(StoreUnavailableError, match=r"AccessDenied.*deploy/s3"):
        call()
    return True


@pytest.mark.parametrize("key", PRODUCERS_OWN)
def test_a_producer_writes_what_is_its_own(guarded: Guarded, key: str, tmp_path: Path) -> None:
    store = guarded.store("producer")
    store.put(key, b"new")
    (tmp_path / "file").write_bytes(b"x" * (6 << 20))  # in parts
    store.upload(tmp_path / "file", key)


@pytest.mark.parametrize(
    "key", [*WORKERS_OWN, *BELOW, *TRAINED, *REMOVALS, "datasets/d", "x", "jobs/x"]
)
def test_a_producer_writes_nothing_else(guarded: Guarded, key: str) -> None:
    store = guarded.store("producer")
    assert refused(lambda: store.put(key, b"forged"))
    assert refused(lambda: store.create(key, b"forged"))


@pytest.mark.parametrize("key", [*PRODUCERS_OWN, *WORKERS_OWN, *TRAINED])
def test_a_producer_deletes_nothing(guarded: Guarded, key: str) -> None:
    assert refused(lambda: guarded.store("producer").delete(key))
    assert guarded.store("operator").exists(key)


def test_a_producer_reads_what_it_shows_and_no_weights(guarded: Guarded) -> None:
    store = guarded.store("producer")
    put_as_owner(guarded.owner, guarded.bucket, "datasets/d.jsonl")
    hidden = [keys.adapter(REF) + name for name in ("claim.json", "adapter_model.safetensors")]
    for key in ["datasets/d.jsonl", *WORKERS_OWN, *TRAINED]:
        if key in hidden:
            assert refused(lambda key=key: store.get(key))  # type: ignore[misc]
        else:
            assert store.get(key) == b"{}" and store.exists(key)
    for key in (keys.request("r"), keys.staging("u") + "upload.json"):
        assert refused(lambda key=key: store.get(key))  # type: ignore[misc]


@pytest.mark.parametrize("role", ["producer", "worker", "operator"])
def test_what_is_missing_is_not_found_and_a_creation_is_lost_once(
    guarded: Guarded, role: str
) -> None:
    """Without s3:ListBucket the server would say AccessDenied for what is missing."""
    store = guarded.store(role)
    key = keys.live(f"new-{role}") if role == "producer" else keys.reply(f"new-{role}")
    assert not store.exists(key)
    with pytest.raises(NotFoundError):
        store.get(key)
    assert store.create(key, b"first") and store.create(key, b"first")
    assert not store.create(key, b"second")
    assert "j" in store.children(keys.JOBS)
    assert list(store.entries(keys.LIVE_JOBS))


@pytest.mark.parametrize("key", WORKERS_OWN)
def test_a_worker_writes_what_is_its_own(guarded: Guarded, key: str) -> None:
    store = guarded.store("worker")
    store.put(key, b"new")
    assert store.get(key) == b"new"


@pytest.mark.parametrize("key", [*PRODUCERS_OWN, *TRAINED, "datasets/d", "x"])
def test_a_worker_writes_no_job_no_upload_and_no_version(guarded: Guarded, key: str) -> None:
    assert refused(lambda: guarded.store("worker").put(key, b"forged"))


def test_a_worker_deletes_markers_staging_and_attempts_alone(guarded: Guarded) -> None:
    store = guarded.store("worker")
    for key in {*PRODUCERS_OWN, *WORKERS_OWN, *TRAINED}:
        if key in WORKERS_REMOVALS:
            store.delete(key)
            assert not store.exists(key)
        else:
            assert refused(lambda key=key: store.delete(key))  # type: ignore[misc]


def test_a_worker_finds_its_bucket(guarded: Guarded) -> None:
    guarded.store("worker").make_bucket()


def test_an_operator_does_all_that_is_in_the_bucket(guarded: Guarded) -> None:
    store = guarded.store("operator")
    for key in {*PRODUCERS_OWN, *WORKERS_OWN, *TRAINED, *REMOVALS, "datasets/d"}:
        store.put(key, b"new")
        assert store.get(key) == b"new"
        store.delete(key)


@pytest.mark.parametrize("role", ["producer", "worker", "operator"])
def test_nobody_changes_the_policy_or_removes_the_bucket(guarded: Guarded, role: str) -> None:
    client = guarded.store(role)._client
    with pytest.raises(S3Error, match="AccessDenied"):
        client.delete_bucket_policy(bucket_name=guarded.bucket)
    with suppress(S3Error):  # one that is not empty stays in any case
        client.remove_bucket(bucket_name=guarded.bucket)
    assert guarded.owner.bucket_exists(bucket_name=guarded.bucket)
