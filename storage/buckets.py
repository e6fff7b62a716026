"""Creation of the two buckets, and checks that only the public one is publicly readable."""

import hashlib
import json
import time
from typing import Any, Final, cast

from botocore.exceptions import ClientError

from moorage.errors import ConfigError, StorageRefused, StorageUnavailable
from moorage.settings import Settings
from storage.errors import WRONG_KEYS, get_error_code, get_http_status, translate_errors
from storage.s3 import ObjectStore

# Read anonymously to check public access; outside the prefixes that sweeps list.
_PROBE_KEY: Final = "moorage-readable.txt"
_PROBE: Final = b"moorage reads this object anonymously to check public access.\n"
_SID: Final = "MoorageAnyoneReads"
_CREATED_CONCURRENTLY: Final = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted"}
_WAIT_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.1
_MANUALLY: Final = "or create the buckets manually and set MOORAGE_MANAGE_BUCKETS=false"
# What a 403 of a request means, and what else it may mean.
_PERMISSIONS: Final = {
    "HeadBucket": ("s3:ListBucket", "or the bucket belongs to another account"),
    "ListObjectsV2": ("s3:ListBucket", "or the bucket belongs to another account"),
    "CreateBucket": ("s3:CreateBucket", _MANUALLY),
    "PutObject": ("s3:PutObject", _MANUALLY),
    "GetBucketPolicy": ("s3:GetBucketPolicy", _MANUALLY),
    "PutBucketPolicy": (
        "s3:PutBucketPolicy", f"or Block Public Access forbids it: turn it off for this bucket, {_MANUALLY}"
    ),
}  # fmt: skip
_ELSEWHERE: Final = (
    "open the bucket in the store's own console and set MOORAGE_MANAGE_BUCKETS=false and ASSET_BASE_URL to the address"
    " at which it is served, or set MOORAGE_ASSETS=signed, which needs no public bucket"
)
# Of an anonymous GET. Some stores return 404 instead of 403; R2 returns 400, Supabase and Scality 501.
NOT_PUBLIC: Final = {400, 401, 403, 404, 405, 501}


def ensure_buckets(store: ObjectStore, settings: Settings, *, wait_seconds: float = _WAIT_SECONDS) -> list[str]:
    """
    Create missing buckets, allow public read access to the public one, and check that the private one has none.

    Existing buckets are only checked, which needs fewer permissions. Several processes may run it at once.
    Does nothing if `settings.manage_buckets` is off, and opens no bucket if files are served without a public one.
    Returns one line for each change.

    Args:
        wait_seconds: how long a store may take until a new bucket, and then its policy, has effect.

    Raises:
        ConfigError: a missing permission (named in the message), access that cannot be corrected, or a refusal.
        StorageUnavailable: the store does not respond, or does not find a bucket that it has created.
    """
    if not settings.manage_buckets:
        return []
    try:
        return _ensure_buckets(store, settings, wait_seconds)
    except StorageRefused as error:  # it will refuse again: waiting does not help
        permission, hint = _PERMISSIONS.get(error.facts.get("operation", ""), ("", ""))
        if permission and error.facts["status"] == 403 and error.facts["code"] not in WRONG_KEYS:
            raise ConfigError(f"{error}: the access key lacks the permission {permission} ({hint})") from error
        hint = "correct AWS_ENDPOINT_URL_S3, AWS_REGION and the credentials"
        raise ConfigError(f"{error} ({hint}, {_MANUALLY})") from error


def _ensure_buckets(store: ObjectStore, settings: Settings, wait_seconds: float) -> list[str]:
    names = (store.public_bucket, store.private_bucket)
    region = settings.aws_region
    changes = [f"created bucket {name}" for name in names if _create_if_missing(store, name, region, wait_seconds)]
    store.probe()
    _require_private(store, store.private_bucket)
    if settings.assets == "redirect" and _allow_public_read(store, store.public_bucket, wait_seconds):
        changes.append(f"allowed public read access to {store.public_bucket}")
    return changes


def _create_if_missing(store: ObjectStore, bucket: str, region: str, wait_seconds: float) -> bool:
    deadline = time.monotonic() + wait_seconds
    was_created = False
    while not _exists(store, bucket):
        if time.monotonic() > deadline:
            raise StorageUnavailable(f"bucket {bucket} exists, but is not found yet: does another account own it?")
        was_created = _create_bucket(store, bucket, region) or was_created
        time.sleep(_POLL_SECONDS)
    return was_created


def _exists(store: ObjectStore, bucket: str) -> bool:
    with translate_errors("head", bucket):
        try:
            store.clients.authenticated().head_bucket(Bucket=bucket)
        except ClientError as error:
            if get_http_status(error) == 404:
                return False
            if get_http_status(error) != 403:
                raise
            store.clients.authenticated().list_objects_v2(Bucket=bucket, MaxKeys=1)  # its error has a code
            raise
    return True


def _create_bucket(store: ObjectStore, bucket: str, region: str) -> bool:
    """Create a bucket; return False if another process created it at the same moment."""
    options: dict[str, Any] = {}
    if region != "us-east-1":  # S3 rejects its default region here
        options["CreateBucketConfiguration"] = {"LocationConstraint": region}
    with translate_errors("create", bucket):
        try:
            store.clients.authenticated().create_bucket(Bucket=bucket, **options)
        except ClientError as error:
            if get_error_code(error) in _CREATED_CONCURRENTLY:
                return False
            raise
    return True


def _allow_public_read(store: ObjectStore, bucket: str, wait_seconds: float) -> bool:
    """Allow public read access unless it is allowed; return True if changed."""
    if _is_public(store, bucket):
        return False
    _put_probe(store, bucket)
    if _is_public(store, bucket):
        return False
    _add_policy(store, bucket)
    deadline = time.monotonic() + wait_seconds
    while not _is_public(store, bucket):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"bucket {bucket} has a public read policy, but an anonymous GET is refused: turn off its"
                f" Block Public Access, or {_ELSEWHERE}"
            )
        time.sleep(_POLL_SECONDS)
    return True


def _require_private(store: ObjectStore, bucket: str) -> None:
    if store.head(bucket, _PROBE_KEY) is None:
        _put_probe(store, bucket)
    if _is_public(store, bucket):
        raise ConfigError(
            f"anyone can read the private bucket {bucket}: remove the policy or ACL that allows it, or name another"
            " bucket in S3_PRIVATE_BUCKET"
        )


def _is_public(store: ObjectStore, bucket: str) -> bool:
    with translate_errors("anonymous get", bucket, _PROBE_KEY):
        try:
            store.clients.anonymous().get_object(Bucket=bucket, Key=_PROBE_KEY)["Body"].close()
        except ClientError as error:
            if get_http_status(error) in NOT_PUBLIC:
                return False
            raise
    return True


def _put_probe(store: ObjectStore, bucket: str) -> None:
    digest = hashlib.sha256(_PROBE).hexdigest()
    store.put(bucket, _PROBE_KEY, _PROBE, size=len(_PROBE), sha256=digest, content_type="text/plain")


def _add_policy(store: ObjectStore, bucket: str) -> None:
    """Add one statement to the bucket's policy; those of an operator are kept."""
    try:
        statements = [s for s in _get_policy_statements(store, bucket) if s.get("Sid") != _SID]
        added = {"Sid": _SID, "Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"]}
        statements.append(added | {"Resource": [f"arn:aws:s3:::{bucket}/*"]})
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        with translate_errors("put policy", bucket):
            store.clients.authenticated().put_bucket_policy(Bucket=bucket, Policy=policy)
    except StorageRefused as error:
        if error.facts.get("status") == 403:  # a missing permission
            raise
        raise ConfigError(
            f"this store does not let moorage open bucket {bucket} to everyone ({error}): {_ELSEWHERE}"
        ) from error


def _get_policy_statements(store: ObjectStore, bucket: str) -> list[dict[str, Any]]:
    with translate_errors("get policy", bucket):
        try:
            text = store.clients.authenticated().get_bucket_policy(Bucket=bucket)["Policy"]
        except ClientError as error:
            if get_http_status(error) == 404:
                return []
            raise
    statements = json.loads(text).get("Statement", [])
    return cast("list[dict[str, Any]]", statements if isinstance(statements, list) else [statements])
