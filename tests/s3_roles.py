"""A bucket on a real S3 server whose users have the policies of deploy/s3, as .ci/s3_server.sh made
them. Their keys are `<role>-key` and `<role>-secret`; the bucket belongs to somebody else."""

import io
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minio import Minio

from ramole_core.settings import Settings
from ramole_core.store.minio import MinioStore

POLICIES = Path(__file__).parents[1] / "deploy" / "s3"
ROLES = ("producer", "worker", "operator")
BELOW = [  # no object of ours, but of the shape that a producer may write, where a `*` spans `/`
    "jobs/j/output/00000.jsonl/input/x", "jobs/j/output/manifest.json",
    "jobs/j/attempts/00000/cancelled.json", "jobs/j/attempts/00000/input/2",
    "jobs/j/deaths/0/alone-input/input/x", "jobs/j/x/input/y/finished.json",
]  # fmt: skip


def policy(role: str, bucket: str) -> list[dict[str, Any]]:
    """The statements of the role's policy, for this bucket."""
    text = (POLICIES / f"{role}-policy.json").read_text()
    statements = json.loads(text.replace("arn:aws:s3:::ramole", f"arn:aws:s3:::{bucket}"))
    return list(statements["Statement"])


def guarded_bucket(endpoint: str) -> tuple[str, Minio]:
    """A fresh bucket with one bucket policy for all roles, and its owner's client."""
    bucket = f"guarded-{uuid.uuid4().hex[:12]}"
    owner = Minio(
        endpoint=urlsplit(endpoint).netloc,
        access_key="testkey123",
        secret_key="testsecret123",
        secure=False,
        region="us-east-1",
    )
    owner.make_bucket(bucket_name=bucket)
    statements = [
        {**statement, "Sid": f"{role}{statement['Sid']}",
         "Principal": {"AWS": [f"arn:aws:iam:::user/{role}"]}}
        for role in ROLES
        for statement in policy(role, bucket)
    ]  # fmt: skip
    text = json.dumps({"Version": "2012-10-17", "Statement": statements})
    owner.set_bucket_policy(bucket_name=bucket, policy=text)
    return bucket, owner


def put_as_owner(owner: Minio, bucket: str, key: str, data: bytes = b"{}") -> None:
    """What somebody else wrote before."""
    owner.put_object(bucket_name=bucket, object_name=key, data=io.BytesIO(data), length=len(data))


def store_of(role: str, endpoint: str, bucket: str) -> MinioStore:
    """The store as this role sees it."""
    return MinioStore.from_settings(
        Settings.load(
            {},
            store_url=f"s3://{bucket}?endpoint={endpoint}",
            store_access_key=f"{role}-key",
            store_secret_key=f"{role}-secret",
        )
    )
