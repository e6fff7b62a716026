"""The two buckets: made where they are missing, one readable by anyone, the other by nobody but us."""

import hashlib
import json
import time
from typing import Any, Final, Literal, cast

from botocore.exceptions import ClientError

from moorage.errors import ConfigError, StorageRefused
from moorage.settings import Settings
from storage.errors import get_error_code, get_http_status, translate_errors
from storage.s3 import ObjectStore

# What the anonymous GET asks for; outside the prefixes that sweeps look at.
_PROBE_KEY: Final = "moorage-readable.txt"
_PROBE: Final = b"moorage looks here whether anyone can read this bucket.\n"
_SID: Final = "MoorageAnyoneReads"
_MADE_BY_ANOTHER: Final = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted"}
_PATIENCE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.1
_BY_HAND: Final = "or make the buckets yourself and set MOORAGE_MANAGE_BUCKETS=false"


def ensure_buckets(blobs: ObjectStore, settings: Settings) -> list[str]:
    """
    See that both buckets exist, that anyone can read the public one and nobody the private one.

    Buckets are looked at first and only made when they are missing, so a start needs no more rights than it uses. Any
    number of processes may do this at once. Nothing is looked at when `settings.manage_buckets` is off.

    Returns:
        What was changed, one line each; empty when all was as it should be.

    Raises:
        ConfigError: a permission is missing (named in the message), or who can read what cannot be brought about.
        StorageUnavailable: storage is away.
    """
    if not settings.manage_buckets:
        return []
    done = []
    for bucket in (blobs.public_bucket, blobs.private_bucket):
        if _make_if_missing(blobs, bucket, settings.aws_region):
            done.append(f"made bucket {bucket}")
    if _open_to_anyone(blobs, blobs.public_bucket):
        done.append(f"let anyone read the objects of {blobs.public_bucket}")
    _require_closed(blobs, blobs.private_bucket)
    return done


def _make_if_missing(blobs: ObjectStore, bucket: str, region: str) -> bool:
    until = time.monotonic() + _PATIENCE_SECONDS
    made = False
    while not _exists(blobs, bucket):
        if time.monotonic() > until:
            raise ConfigError(f"bucket {bucket} was made but does not appear: is the name taken by another account?")
        made = _make(blobs, bucket, region) or made
        time.sleep(_POLL_SECONDS)
    return made


def _exists(blobs: ObjectStore, bucket: str) -> bool:
    with translate_errors("head", bucket):
        try:
            blobs.clients.authenticated().head_bucket(Bucket=bucket)
        except ClientError as error:
            if get_http_status(error) == 404:
                return False
            if get_http_status(error) == 403:
                raise _forbidden(bucket, "s3:ListBucket", "or the bucket belongs to another account") from error
            raise
    return True


def _make(blobs: ObjectStore, bucket: str, region: str) -> bool:
    """Make a bucket; False when another process did in the same moment."""
    where: dict[str, Any] = {}
    if region != "us-east-1":  # which S3 takes for the default and refuses to hear
        where["CreateBucketConfiguration"] = {"LocationConstraint": region}
    with translate_errors("create", bucket):
        try:
            blobs.clients.authenticated().create_bucket(Bucket=bucket, **where)
        except ClientError as error:
            if get_error_code(error) in _MADE_BY_ANOTHER:
                return False
            if get_http_status(error) == 403:
                raise _forbidden(bucket, "s3:CreateBucket", _BY_HAND) from error
            raise
    return True


def _open_to_anyone(blobs: ObjectStore, bucket: str) -> bool:
    """Let anyone read the objects of a bucket, unless they can; return whether it was changed."""
    if _anyone_reads(blobs, bucket):
        return False
    _put_probe(blobs, bucket)
    if _anyone_reads(blobs, bucket):
        return False
    _add_policy(blobs, bucket)
    until = time.monotonic() + _PATIENCE_SECONDS
    while not _anyone_reads(blobs, bucket):
        if time.monotonic() > until:
            raise ConfigError(
                f"bucket {bucket} has a policy that lets anyone read, yet an anonymous GET is refused: turn off its"
                " Block Public Access, or serve it otherwise and set MOORAGE_MANAGE_BUCKETS=false and ASSET_BASE_URL"
            )
        time.sleep(_POLL_SECONDS)
    return True


def _require_closed(blobs: ObjectStore, bucket: str) -> None:
    if blobs.head(bucket, _PROBE_KEY) is None:
        _put_probe(blobs, bucket)
    if _anyone_reads(blobs, bucket):
        raise ConfigError(
            f"anyone can read the private bucket {bucket}: remove the policy or ACL that allows it, or name another"
            " bucket in S3_PRIVATE_BUCKET"
        )


def _anyone_reads(blobs: ObjectStore, bucket: str) -> bool:
    with translate_errors("anonymous get", bucket, _PROBE_KEY):
        try:
            blobs.clients.anonymous().get_object(Bucket=bucket, Key=_PROBE_KEY)["Body"].close()
        except ClientError as error:
            # 404 to an anonymous reader: nothing there, or not for them.
            if get_http_status(error) in {401, 403, 404}:
                return False
            raise
    return True


def _put_probe(blobs: ObjectStore, bucket: str) -> None:
    digest = hashlib.sha256(_PROBE).hexdigest()
    try:
        blobs.put(bucket, _PROBE_KEY, _PROBE, size=len(_PROBE), sha256=digest, content_type="text/plain")
    except StorageRefused as error:
        raise _forbidden(bucket, "s3:PutObject", str(error)) from error


def _add_policy(blobs: ObjectStore, bucket: str) -> None:
    """Add our statement to the bucket's policy, keeping what an operator wrote there."""
    statements = [s for s in _statements(blobs, bucket) if s.get("Sid") != _SID]
    statements.append(
        {
            "Sid": _SID,
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject"],
            "Resource": [f"arn:aws:s3:::{bucket}/*"],
        }
    )
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    with translate_errors("put policy", bucket):
        try:
            blobs.clients.authenticated().put_bucket_policy(Bucket=bucket, Policy=policy)
        except ClientError as error:
            if get_http_status(error) == 403:
                hint = f"or Block Public Access forbids it: turn it off for this bucket, {_BY_HAND}"
                raise _forbidden(bucket, "s3:PutBucketPolicy", hint) from error
            raise


def _statements(blobs: ObjectStore, bucket: str) -> list[dict[str, Any]]:
    with translate_errors("get policy", bucket):
        try:
            text = blobs.clients.authenticated().get_bucket_policy(Bucket=bucket)["Policy"]
        except ClientError as error:
            if get_http_status(error) == 404:
                return []
            if get_http_status(error) == 403:
                raise _forbidden(bucket, "s3:GetBucketPolicy", _BY_HAND) from error
            raise
    found = json.loads(text).get("Statement", [])
    return cast("list[dict[str, Any]]", found if isinstance(found, list) else [found])


_Permission = Literal["s3:ListBucket", "s3:CreateBucket", "s3:PutObject", "s3:GetBucketPolicy", "s3:PutBucketPolicy"]


def _forbidden(bucket: str, permission: _Permission, hint: str) -> ConfigError:
    return ConfigError(f"bucket {bucket}: our keys lack the permission {permission} ({hint})")
