"""
How a store proves that it holds the bytes that were sent: by a SHA-256, by an MD5, or by returning them.

Stores differ (docs/how-to/use-your-own-servers.md), so a probe finds out with two objects in the private bucket. They
are not deleted: a process that starts later only reads them, and concurrent probes write the same bytes.
"""

import base64
import hashlib
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, cast

from botocore.exceptions import ClientError

from moorage.errors import StorageRefused, StorageUnavailable
from storage.errors import ObjectMissing, get_http_status, is_unsupported, translate_errors

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

# sha256: the store verifies a SHA-256 and returns it on HEAD. md5: it verifies Content-MD5, and its ETag is the MD5.
# none: neither; size and bytes are read back. The values of S3_CHECKSUMS, besides "auto".
Proof = Literal["sha256", "md5", "none"]

DESCRIPTIONS: Final[dict[Proof, str]] = {
    "sha256": "an upload is proved by the SHA-256 that the store verifies and reports",
    "md5": "an upload is proved by Content-MD5 and ETag; the audit reads objects back to compare their SHA-256",
    "none": "no checksum is supported: an upload is proved by reading it back, and the audit reads objects back",
}
CHUNK_BYTES: Final = 1 << 16
TRANSFER_SECONDS: Final = 300.0  # of an object: ends before the limit of a step, which counts as a crash of the file
_PROBE: Final = b"moorage stores this object to find out which checksums the store supports.\n"
_SHA256_KEY: Final = "moorage-checksum-sha256.txt"
_MD5_KEY: Final = "moorage-checksum-md5.txt"


def recall(client: "S3Client", bucket: str) -> Proof | None:
    """
    Return the result of the last probe, None without one. Sends no object.

    The object that proves an MD5 exists only if a SHA-256 is not supported.
    """
    with translate_errors("checksum probe", bucket):
        if _reports_sha256(client, bucket):
            return "sha256"
        stored = _head_probe(client, bucket, _MD5_KEY)
        return None if stored is None else _judge_etag(stored.get("ETag", ""))


def build_arguments(proof: Proof, body: BinaryIO | bytes, sha256: str) -> dict[str, Any]:
    """Return the arguments of `put_object` that make the store verify the body; a file is read from its start."""
    if proof == "sha256":
        return {"ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode()}
    return {"ContentMD5": base64.b64encode(_compute_md5(body)).decode()} if proof == "md5" else {}


def is_proved(proof: Proof, arguments: dict[str, Any], etag: str) -> bool:
    """Return whether the response of `put_object` proves the object. An ETag is no MD5 if the store split the file."""
    if proof == "md5":
        return base64.b64decode(arguments["ContentMD5"]).hex() == etag.strip('"').lower()
    return proof == "sha256"


def check_time(until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError(f"not complete within {TRANSFER_SECONDS:g} s")


def limit_reads(file: BinaryIO, until: float) -> Any:
    def read(size: int = -1) -> bytes:
        check_time(until)
        return file.read(size)

    return SimpleNamespace(read=read, seek=file.seek, tell=file.tell)


def read_back(client: "S3Client", bucket: str, key: str, *, size: int, sha256: str, until: float) -> None:
    """Compare size and bytes of a stored object. Raises StorageRefused if they differ."""
    digest = hashlib.sha256()
    try:
        with translate_errors("read back", bucket, key):
            response = client.get_object(Bucket=bucket, Key=key)
            stored_bytes = response["ContentLength"]
            if stored_bytes == size:
                for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
                    digest.update(chunk)
                    check_time(until)
            response["Body"].close()
    except ObjectMissing as error:  # permanent elsewhere: here the store has just accepted it
        raise StorageUnavailable(f"{error}, after it was stored") from error
    if stored_bytes != size or digest.hexdigest() != sha256:
        facts = {"bytes": stored_bytes, "sha256": digest.hexdigest()}
        raise StorageRefused(f"put of {bucket}/{key}: the store returns other bytes than it was sent", facts=facts)


def decode_sha256(checksum: str | None) -> str | None:
    """Return a base64 checksum as hex; None for one of a multipart upload ("...-3"), and for a text that is none."""
    try:
        return base64.b64decode(checksum or "", validate=True).hex() or None
    except ValueError:
        return None


def probe(client: "S3Client", bucket: str) -> Proof:
    """Find the strongest proof that the store gives; raises StorageRefused if it accepts no object."""
    digest = hashlib.sha256(_PROBE).hexdigest()
    other = hashlib.sha256(b"other bytes").hexdigest()
    with translate_errors("checksum probe", bucket):
        # A store that accepts a wrong digest ignores it, even if HEAD returns it.
        if (
            _put_probe(client, bucket, _SHA256_KEY, "sha256", other) is None
            and _put_probe(client, bucket, _SHA256_KEY, "sha256", digest) is not None
            and _reports_sha256(client, bucket)
        ):
            return "sha256"
        etag = _put_probe(client, bucket, _MD5_KEY, "md5", digest)
        if etag is None:
            client.put_object(Bucket=bucket, Key=_MD5_KEY, Body=_PROBE)
        return _judge_etag(etag or "")


def _put_probe(client: "S3Client", bucket: str, key: str, proof: Proof, sha256: str) -> str | None:
    """Store the probe; return its ETag, None if the store refuses the checksum."""
    try:
        arguments = build_arguments(proof, _PROBE, sha256)
        response = client.put_object(Bucket=bucket, Key=key, Body=_PROBE, ContentType="text/plain", **arguments)
        return response.get("ETag", "")
    except ClientError as error:
        if is_unsupported(error):
            return None
        raise


def _reports_sha256(client: "S3Client", bucket: str) -> bool:
    stored = _head_probe(client, bucket, _SHA256_KEY, ChecksumMode="ENABLED")
    return stored is not None and decode_sha256(stored.get("ChecksumSHA256")) == hashlib.sha256(_PROBE).hexdigest()


def _head_probe(client: "S3Client", bucket: str, key: str, **mode: Any) -> dict[str, Any] | None:
    """Return what the store reports of a probe; None if it is missing, or the store does not know the mode."""
    try:
        return cast("dict[str, Any]", client.head_object(Bucket=bucket, Key=key, **mode))
    except ClientError as error:
        if is_unsupported(error) or get_http_status(error) == 404:
            return None
        raise


def _judge_etag(etag: str) -> Proof:
    return "md5" if etag.strip('"') == _compute_md5(_PROBE).hex() else "none"


def _compute_md5(body: BinaryIO | bytes) -> bytes:
    if isinstance(body, bytes):
        return hashlib.md5(body, usedforsecurity=False).digest()
    body.seek(0)
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := body.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.digest()
