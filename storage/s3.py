"""Objects in one public and one private bucket."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from moorage.errors import StorageRefused, StorageUnavailable
from moorage.failpoints import failpoint
from moorage.settings import Settings
from storage import proofs, urls
from storage.errors import get_http_status, translate_errors
from storage.proofs import Proof
from storage.s3_clients import WHOLE_BYTES, S3Clients


@dataclass(frozen=True, slots=True)
class ObjectStat:
    size_bytes: int
    sha256: str | None  # hex, of the whole object; None if the store reports none or the object is stored in parts


@dataclass(frozen=True, slots=True)
class ListedObject:
    key: str
    size_bytes: int
    modified_at: datetime


class ObjectReader:
    """An object opened for reading. Its methods raise StorageUnavailable if the connection breaks."""

    def __init__(self, body: StreamingBody, size: int, content_type: str, bucket: str, key: str) -> None:
        self.size_bytes, self.content_type = size, content_type
        self._body, self._bucket, self._key = body, bucket, key

    def read(self, size: int | None = None, until: float = math.inf) -> bytes:
        """Return the next `size` bytes, the rest if None, b"" at the end."""
        with translate_errors("read", self._bucket, self._key):
            proofs.check_time(until)
            return bytes(self._body.read(size))

    def iterate_chunks(self, size: int = proofs.CHUNK_BYTES) -> Iterator[bytes]:
        until = time.monotonic() + proofs.TRANSFER_SECONDS
        while chunk := self.read(size, until):
            yield chunk


class ObjectStore:
    """
    The objects of both buckets. Every method that sends a request raises StorageUnavailable if the store does not
    respond, and StorageRefused if it rejects the request.
    """

    def __init__(self, settings: Settings) -> None:
        self.public_bucket = settings.s3_public_bucket
        self.private_bucket = settings.s3_private_bucket
        self.clients = S3Clients(settings)
        self._asset_base = urls.get_asset_base_url(settings)
        self._checksums = settings.s3_checksums
        self._proof: Proof | None = None if self._checksums == "auto" else self._checksums
        self._is_answering = False  # as the last upload or check of this process found

    @property
    def proof(self) -> Proof:
        """How this store proves an upload: as S3_CHECKSUMS says, or as a probe found, which the first use may send."""
        if self._proof is None:
            self.probe()
        return cast(Proof, self._proof)

    def find_known_proof(self) -> Proof | None:
        """Return the proof if it is known. Stores nothing: a process that only reads may lack the permission."""
        if self._proof is None:
            with contextlib.suppress(StorageRefused):  # the response to a HEAD has no reason: that to a PUT does
                self._proof = proofs.recall(self.clients.authenticated(), self.private_bucket)
        return self._proof

    def probe(self, *, again: bool = False) -> None:
        """Find out how this store proves an upload, unless S3_CHECKSUMS says so; `again` even if a probe was made."""
        if self._checksums == "auto":
            known = None if again else self.find_known_proof()
            self._proof = known or proofs.probe(self.clients.authenticated(), self.private_bucket)

    def check_connection(self) -> None:
        with self._observe(), translate_errors("head", self.public_bucket):
            self.clients.authenticated().head_bucket(Bucket=self.public_bucket)

    def require_connection(self) -> None:
        """Check the connection unless the last upload of this process succeeded: each file would cost a request."""
        if not self._is_answering:
            self.check_connection()

    @contextlib.contextmanager
    def _observe(self) -> Iterator[None]:
        try:
            yield
        except (StorageUnavailable, StorageRefused):
            self._is_answering = False
            raise
        self._is_answering = True

    def put(
        self,
        bucket: str,
        key: str,
        body: BinaryIO | bytes,
        *,
        size: int,
        sha256: str,
        content_type: str,
        cache_control: str | None = None,
        disposition: str | None = None,
    ) -> None:
        """
        Store an object by one request, streamed from the start of `body`, and prove that the store has these bytes.

        One request (up to 5 GiB), not a multipart upload: then the checksum that a HEAD returns would not be the digest
        of the bytes. `sha256` is in hex, `size` in bytes. An object that is not proved remains, and is not named.
        `disposition`: "attachment" if browsers shall save it, and never show it.
        """
        named = {"CacheControl": cache_control, "ContentDisposition": disposition}
        optional: dict[str, Any] = {name: value for name, value in named.items() if value}
        proof, client = self.proof, self.clients.authenticated()
        checksum, until = proofs.build_arguments(proof, body, sha256), time.monotonic() + proofs.TRANSFER_SECONDS
        if not isinstance(body, bytes):
            body.seek(0)  # from another offset, the store waits for the rest until the timeout
            body = body.read() if size <= WHOLE_BYTES else proofs.limit_reads(body, until)  # sent 16 kB at a time
        failpoint("storage.before_put")
        with self._observe(), translate_errors("put", bucket, key):
            response = client.put_object(
                Bucket=bucket, Key=key, Body=body, ContentLength=size, ContentType=content_type, **checksum, **optional
            )
        failpoint("storage.after_put")
        if not proofs.is_proved(proof, checksum, response.get("ETag", "")):
            proofs.read_back(client, bucket, key, size=size, sha256=sha256, until=until)

    @contextlib.contextmanager
    def open_object(
        self, bucket: str, key: str, *, byte_range: tuple[int, int] | None = None
    ) -> Iterator[ObjectReader]:
        """Open an object, from the first to the last byte of the range if given; raises ObjectMissing."""
        optional: dict[str, Any] = {"Range": f"bytes={byte_range[0]}-{byte_range[1]}"} if byte_range else {}
        optional |= self._checksum_mode()
        with translate_errors("get", bucket, key):
            response = self.clients.authenticated().get_object(Bucket=bucket, Key=key, **optional)
            size = response["ContentLength"]
        with contextlib.closing(response["Body"]) as body:
            yield ObjectReader(body, size, response.get("ContentType", ""), bucket, key)

    def head(self, bucket: str, key: str) -> ObjectStat | None:
        """Return size and digest of an object; None if it or the bucket is missing (both return 404)."""
        mode = self._checksum_mode()
        with translate_errors("head", bucket, key):
            try:
                response = self.clients.authenticated().head_object(Bucket=bucket, Key=key, **mode)
                size = response["ContentLength"]
            except ClientError as error:
                if get_http_status(error) == 404:
                    return None
                raise
        return ObjectStat(size, proofs.decode_sha256(response.get("ChecksumSHA256")))

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object; no error if it is missing."""
        failpoint("storage.before_delete")
        with translate_errors("delete", bucket, key):
            self.clients.authenticated().delete_object(Bucket=bucket, Key=key)
        failpoint("storage.after_delete")

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        """Copy an object inside the store, up to 5 GiB; its age starts again at 0. Raises ObjectMissing."""
        failpoint("storage.before_copy")
        with translate_errors("copy", bucket, key):
            self.clients.authenticated().copy_object(
                Bucket=to_bucket, Key=to_key, CopySource={"Bucket": bucket, "Key": key}
            )
        failpoint("storage.after_copy")

    def list_objects(self, bucket: str, prefix: str, start_after: str = "") -> Iterator[ListedObject]:
        """Yield the objects with a prefix in key order, after `start_after`; one page in memory."""
        pages = self.clients.authenticated().get_paginator("list_objects_v2")
        with translate_errors("list", bucket, prefix):
            for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=start_after):
                for item in page.get("Contents", ()):
                    yield ListedObject(item["Key"], item["Size"], item["LastModified"])

    def presign_get(self, bucket: str, key: str, seconds: int) -> str:
        """Return a URL at the public endpoint that allows anyone to read the object for a time."""
        with translate_errors("presign", bucket, key):
            return self.clients.presigning().generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=seconds
            )

    def build_asset_url(self, key: str) -> str:
        return urls.build_asset_url(self._asset_base, key)

    def _checksum_mode(self) -> dict[str, Any]:
        """Return the argument that requests checksums: of a HEAD for the audit, of a GET so that botocore compares."""
        return {"ChecksumMode": "ENABLED"} if self.find_known_proof() == "sha256" else {}
