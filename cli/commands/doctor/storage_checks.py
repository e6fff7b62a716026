"""The doctor's checks of the two buckets: there, writable, one readable by anyone and the other by nobody."""

import hashlib
from collections.abc import Iterator
from typing import Final
from uuid import uuid4

import requests

from cli.commands.doctor.checks import CheckResult, fail, ok, warn
from moorage.errors import MoorageError
from moorage.settings import Settings
from storage import s3
from storage.s3 import ObjectStore

PREFIX: Final = "doctor/"
BYTES: Final = b"moorage doctor looks whether this can be written and who can read it.\n"
GET_SECONDS: Final = 5.0


def check_buckets(settings: Settings) -> Iterator[CheckResult]:
    """Check both buckets with a small object that is deleted again."""
    blobs = s3.ObjectStore(settings)
    try:
        blobs.check_connection()
    except MoorageError as error:
        made = "a worker makes it when it starts" if settings.manage_buckets else "make it"
        yield fail(f"storage: {error}", f"correct AWS_ENDPOINT_URL_S3 and its keys; if the bucket is missing, {made}")
        return
    yield from _bucket(blobs, blobs.public_bucket, is_public=True)
    yield from _bucket(blobs, blobs.private_bucket, is_public=False)


def _bucket(blobs: ObjectStore, bucket: str, *, is_public: bool) -> Iterator[CheckResult]:
    key = f"{PREFIX}{uuid4()}.txt"
    digest = hashlib.sha256(BYTES).hexdigest()
    try:
        blobs.put(bucket, key, BYTES, size=len(BYTES), sha256=digest, content_type="text/plain")
        try:
            yield ok(f"bucket {bucket} can be written")
            yield _public(blobs, bucket, key) if is_public else _private(blobs, bucket, key)
        finally:
            blobs.delete(bucket, key)
    except MoorageError as error:
        yield fail(
            f"bucket {bucket}: {error}", "our keys need s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket"
        )


def _public(blobs: ObjectStore, bucket: str, key: str) -> CheckResult:
    url = blobs.build_asset_url(key)
    status = _anonymous(url)
    if status == 200:
        return ok(f"anyone can read bucket {bucket} at {url.removesuffix(key)}")
    return fail(f"{url} answers {status} to an anonymous reader", "let anyone s3:GetObject, or correct ASSET_BASE_URL")


def _private(blobs: ObjectStore, bucket: str, key: str) -> CheckResult:
    url = blobs.presign_get(bucket, key, 60).partition("?")[0]
    status = _anonymous(url)
    if status in (401, 403, 404):
        return ok(f"nobody else can read bucket {bucket}")
    if status == 200:
        return fail(f"anyone can read the private bucket {bucket}", "remove the policy or ACL that allows it")
    return warn(f"{url} answers {status} to an anonymous reader", "see that only our keys can read it")


def _anonymous(url: str) -> int | str:
    """Return the status that a reader without keys gets, or what went wrong."""
    try:
        with requests.get(url, timeout=GET_SECONDS, allow_redirects=True, stream=True) as answer:
            return answer.status_code
    except requests.RequestException as error:
        return type(error).__name__
