"""Checks of the buckets: existence, write access, and anonymous read access to the public bucket only."""

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
BYTES: Final = b"moorage doctor checks that this object can be written and who can read it.\n"
GET_SECONDS: Final = 5.0


def check_buckets(settings: Settings) -> Iterator[CheckResult]:
    storage = s3.ObjectStore(settings)
    try:
        storage.check_connection()
    except MoorageError as error:
        hint = "a worker creates it at start" if settings.manage_buckets else "create it"
        yield fail(f"storage: {error}", f"correct AWS_ENDPOINT_URL_S3 and its keys; if the bucket is missing, {hint}")
        return
    yield from _check_bucket(storage, storage.public_bucket, is_public=True)
    yield from _check_bucket(storage, storage.private_bucket, is_public=False)


def _check_bucket(storage: ObjectStore, bucket: str, *, is_public: bool) -> Iterator[CheckResult]:
    key = f"{PREFIX}{uuid4()}.txt"
    digest = hashlib.sha256(BYTES).hexdigest()
    try:
        storage.put(bucket, key, BYTES, size=len(BYTES), sha256=digest, content_type="text/plain")
        try:
            yield ok(f"bucket {bucket} can be written")
            yield _check_public(storage, bucket, key) if is_public else _check_private(storage, bucket, key)
        finally:
            storage.delete(bucket, key)
    except MoorageError as error:
        advice = "moorage's keys need s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket"
        yield fail(f"bucket {bucket}: {error}", advice)


def _check_public(storage: ObjectStore, bucket: str, key: str) -> CheckResult:
    url = storage.build_asset_url(key)
    status = _get_anonymously(url)
    if status == 200:
        return ok(f"anyone can read bucket {bucket} at {url.removesuffix(key)}")
    advice = "allow s3:GetObject for everyone, or correct ASSET_BASE_URL"
    return fail(f"{url} returns {status} to an anonymous reader", advice)


def _check_private(storage: ObjectStore, bucket: str, key: str) -> CheckResult:
    url = storage.presign_get(bucket, key, 60).partition("?")[0]
    status = _get_anonymously(url)
    if status in (401, 403, 404):
        return ok(f"anonymous readers cannot read bucket {bucket}")
    if status == 200:
        return fail(f"anyone can read the private bucket {bucket}", "remove the policy or ACL that allows it")
    return warn(f"{url} returns {status} to an anonymous reader", "make sure that only moorage's keys can read it")


def _get_anonymously(url: str) -> int | str:
    try:
        with requests.get(url, timeout=GET_SECONDS, allow_redirects=True, stream=True) as response:
            return response.status_code
    except requests.RequestException as error:
        return type(error).__name__
