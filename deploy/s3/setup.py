"""Makes the bucket, the policies and their users on a MinIO server (or its fork Silo).

Run by the service `setup` of docker-compose.yml with the server's root credentials, which nobody
else has; running it again changes nothing but passwords. The policies name the bucket `ramole`,
which is replaced by RAMOLE_BUCKET. On other S3 servers use the policy files in the server's way.
"""

import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio, MinioAdmin
from minio.credentials import StaticProvider
from minio.error import MinioException
from urllib3.exceptions import HTTPError

ROLES = ("producer", "worker", "operator")


def main() -> int:
    """Makes everything; each step may be made again."""
    bucket = os.environ["RAMOLE_BUCKET"]
    url = urlsplit(os.environ["S3_ENDPOINT"])
    root = StaticProvider(os.environ["MINIO_ROOT_USER"], os.environ["MINIO_ROOT_PASSWORD"])
    secure = url.scheme == "https"
    try:
        client = Minio(endpoint=url.netloc, credentials=root, secure=secure, region="us-east-1")
        if not client.bucket_exists(bucket_name=bucket):
            client.make_bucket(bucket_name=bucket)
        admin = MinioAdmin(endpoint=url.netloc, credentials=root, secure=secure)
        for role in ROLES:
            name, key = f"ramole-{role}", os.environ[f"S3_{role.upper()}_KEY"]
            admin.policy_add(name, policy=policy(role, bucket))
            admin.user_add(key, os.environ[f"S3_{role.upper()}_SECRET"])
            admin.policy_set(name, user=key)
    except (MinioException, HTTPError, ValueError) as e:
        sys.stderr.write(f"setup: {type(e).__name__}: {e}\n")
        return 1
    sys.stdout.write(f"bucket {bucket} and the users of {', '.join(ROLES)} are there\n")
    return 0


def policy(role: str, bucket: str) -> dict[str, object]:
    """The role's policy for this bucket."""
    text = (Path(__file__).parent / f"{role}-policy.json").read_text()
    text = text.replace("arn:aws:s3:::ramole", f"arn:aws:s3:::{bucket}")
    return dict(json.loads(text))


if __name__ == "__main__":
    sys.exit(main())
