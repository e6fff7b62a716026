"""Checks of the store: existence of the buckets, write access, proof of uploads, and who can read which bucket."""

import hashlib
from collections.abc import Iterator
from typing import Final
from uuid import uuid4

import requests

from cli.commands.doctor.checks import CheckResult, fail, ok, warn
from moorage.errors import MoorageError
from moorage.settings import Settings
from storage import s3
from storage.buckets import NOT_PUBLIC
from storage.proofs import DESCRIPTIONS
from storage.s3 import ObjectStore

PREFIX: Final = "doctor/"
BYTES: Final = b"moorage doctor checks that this object can be written and who can read it.\n"
GET_SECONDS: Final = 5.0


def check_buckets(settings: Settings) -> Iterator[CheckResult]:
    storage = s3.ObjectStore(settings)
    try:
        storage.check_connection()
        storage.probe(again=True)
    except MoorageError as error:
        hint = "a worker creates it at start" if settings.manage_buckets else "create it"
        yield fail(f"storage: {error}", f"correct AWS_ENDPOINT_URL_S3 and its keys; if the bucket is missing, {hint}")
        return
    origin = "found by a probe" if settings.s3_checksums == "auto" else f"S3_CHECKSUMS={settings.s3_checksums}"
    yield ok(f"storage: {DESCRIPTIONS[storage.proof]} ({origin})")
    yield from _check_bucket(storage, settings, storage.public_bucket)
    yield from _check_bucket(storage, settings, storage.private_bucket)


def _check_bucket(storage: ObjectStore, settings: Settings, bucket: str) -> Iterator[CheckResult]:
    key = f"{PREFIX}{uuid4()}.txt"
    digest = hashlib.sha256(BYTES).hexdigest()
    try:
        storage.put(bucket, key, BYTES, size=len(BYTES), sha256=digest, content_type="text/plain")
        try:
            yield ok(f"bucket {bucket} can be written")
            if bucket == storage.private_bucket:
                yield _check_private(storage, bucket, key)
            elif settings.assets == "redirect":
                yield _check_public(storage, bucket, key)
            else:
                yield _check_signed(storage, bucket, key, settings.assets)
        finally:
            storage.delete(bucket, key)
    except MoorageError as error:
        advice = "moorage's keys need s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket"
        if settings.s3_checksums != "auto":
            advice += "; or the store does not support the checksum: set S3_CHECKSUMS=auto"
        yield fail(f"bucket {bucket}: {error}", advice)


def _check_public(storage: ObjectStore, bucket: str, key: str) -> CheckResult:
    url = storage.build_asset_url(key)
    status = _get_anonymously(url)
    if status == 200:
        return ok(f"anyone can read bucket {bucket} at {url.removesuffix(key)}")
    advice = "allow s3:GetObject for everyone, correct ASSET_BASE_URL, or set MOORAGE_ASSETS=signed"
    return fail(f"{url} returns {status} to an anonymous reader", advice)


def _check_signed(storage: ObjectStore, bucket: str, key: str, assets: str) -> CheckResult:
    """Check that a signed URL works at the address that readers use; the API streams from the one that was checked."""
    if assets == "stream":
        return ok(f"files of bucket {bucket} are sent by the API: it need not be public")
    url = storage.presign_get(bucket, key, 60)
    status = _get_anonymously(url)
    if status == 200:
        return ok(f"files of bucket {bucket} are read by signed URLs: it need not be public")
    return fail(f"the signed URL {url.partition('?')[0]} returns {status}", "correct S3_PUBLIC_ENDPOINT_URL")


def _check_private(storage: ObjectStore, bucket: str, key: str) -> CheckResult:
    url = storage.presign_get(bucket, key, 60).partition("?")[0]
    status = _get_anonymously(url)
    if status in NOT_PUBLIC:
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
