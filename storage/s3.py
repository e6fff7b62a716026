"""Objects in one public and one private bucket."""

import base64
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import boto3.session
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import Loader
from botocore.response import StreamingBody

from moorage.failpoints import failpoint
from moorage.settings import Settings
from storage import urls
from storage.errors import get_http_status, translate_errors

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CHUNK_BYTES = 1 << 16

_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 20
_DESCRIPTIONS: Final = Loader()  # the S3 API, 1 MB of JSON: parsed once, also for forked workers
_ATTEMPTS: Final = 2  # further retries are the row's


@dataclass(frozen=True, slots=True)
class ObjectStat:
    size_bytes: int
    sha256: str | None  # hex, of the whole object; None if stored without it or in parts
    content_type: str


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

    def read(self, size: int | None = None) -> bytes:
        """Return the next `size` bytes, the rest if None, b"" at the end."""
        with translate_errors("read", self._bucket, self._key):
            return bytes(self._body.read(size))

    def iterate_chunks(self, size: int = _CHUNK_BYTES) -> Iterator[bytes]:
        while chunk := self.read(size):
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

    def check_connection(self) -> None:
        with translate_errors("head", self.public_bucket):
            self.clients.authenticated().head_bucket(Bucket=self.public_bucket)

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
    ) -> None:
        """
        Store an object by one request, streamed from the start of `body`; the store verifies the digest.

        One request (up to 5 GiB), not a multipart upload: then the checksum that a HEAD returns would not be the digest
        of the bytes. `sha256` is in hex, `size` in bytes.
        """
        optional: dict[str, Any] = {"CacheControl": cache_control} if cache_control else {}
        if not isinstance(body, bytes):
            body.seek(0)  # from another offset, the store waits for the rest until the timeout
        failpoint("storage.before_put")
        with translate_errors("put", bucket, key):
            checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
            self.clients.authenticated().put_object(
                Bucket=bucket, Key=key, Body=body, ContentLength=size, ContentType=content_type,
                ChecksumSHA256=checksum, **optional,
            )  # fmt: skip
        failpoint("storage.after_put")

    @contextlib.contextmanager
    def open_object(
        self, bucket: str, key: str, *, byte_range: tuple[int, int] | None = None
    ) -> Iterator[ObjectReader]:
        """Open an object, from the first to the last byte of the range if given; raises ObjectMissing."""
        optional: dict[str, Any] = {"Range": f"bytes={byte_range[0]}-{byte_range[1]}"} if byte_range else {}
        with translate_errors("get", bucket, key):
            response = self.clients.authenticated().get_object(Bucket=bucket, Key=key, **optional)
        with contextlib.closing(response["Body"]) as body:
            yield ObjectReader(body, response["ContentLength"], response.get("ContentType", ""), bucket, key)

    def head(self, bucket: str, key: str) -> ObjectStat | None:
        """Return size, digest and type of an object; None if it or the bucket is missing (both return 404)."""
        with translate_errors("head", bucket, key):
            try:
                response = self.clients.authenticated().head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if get_http_status(error) == 404:
                    return None
                raise
        sha256 = _decode_checksum(response.get("ChecksumSHA256"))
        return ObjectStat(response["ContentLength"], sha256, response.get("ContentType", ""))

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


def _decode_checksum(checksum: str | None) -> str | None:
    """Return a base64 checksum as hex; None for one of a multipart upload ("...-3")."""
    return None if checksum is None or "-" in checksum else base64.b64decode(checksum).hex()


class S3Clients:
    """The S3 clients of this process, created on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[tuple[int, str], S3Client] = {}

    def authenticated(self) -> "S3Client":
        return self._get_client("signing", self._settings.s3_endpoint_url)

    def anonymous(self) -> "S3Client":
        """Return the client without credentials, for public access only."""
        return self._get_client("anonymous", self._settings.s3_endpoint_url, signature_version=UNSIGNED)

    def presigning(self) -> "S3Client":
        """Return the client that creates URLs for the public endpoint. It sends no requests."""
        endpoint, style = self._settings.s3_public_endpoint_url or self._settings.s3_endpoint_url, {}
        if endpoint is None and self._settings.s3_addressing_style == "auto":
            # "auto" signs for s3.amazonaws.com, which redirects to the bucket's region, where the signature is invalid.
            style = {"s3": {"addressing_style": "virtual"}}
        return self._get_client("public", endpoint, **style)

    def _get_client(self, kind: str, endpoint: str | None, **config: Any) -> "S3Client":
        name = (os.getpid(), kind)
        if name not in self._clients:
            usual = {"signature_version": "s3v4", "s3": {"addressing_style": self._settings.s3_addressing_style}}
            self._clients[name] = self._create_client(endpoint, {**usual, **config})
        return self._clients[name]

    def _create_client(self, endpoint: str | None, config: dict[str, Any]) -> "S3Client":
        secret = self._settings.aws_secret_access_key
        # Not the default session of boto3, which is not thread-safe.
        session = botocore.session.Session()
        session.register_component("data_loader", _DESCRIPTIONS)
        return boto3.session.Session(botocore_session=session).client(
            "s3",
            endpoint_url=endpoint,
            region_name=self._settings.aws_region,
            aws_access_key_id=self._settings.aws_access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                tcp_keepalive=True,
                **config,
            ),
        )
