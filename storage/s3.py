"""Blobs: the objects of one public and one private bucket."""

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
_DESCRIPTIONS: Final = Loader()  # of S3's API, a megabyte of JSON: parsed once, also for forked worker children
_ATTEMPTS: Final = 2  # the row's own retry does the rest, with a longer breath


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What storage says of one object."""

    size_bytes: int
    sha256: str | None  # hex, of the whole object; None when it was stored without, or in parts
    content_type: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One object of a listing."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectReader:
    """An object that is being read. Its methods raise StorageUnavailable when the connection breaks."""

    def __init__(self, body: StreamingBody, size: int, content_type: str, bucket: str, key: str) -> None:
        self.size_bytes, self.content_type = size, content_type
        self._body, self._bucket, self._key = body, bucket, key

    def read(self, size: int | None = None) -> bytes:
        """Return the next `size` bytes, all that are left when it is None, b"" at the end."""
        with translate_errors("read", self._bucket, self._key):
            return bytes(self._body.read(size))

    def iterate_chunks(self, size: int = _CHUNK_BYTES) -> Iterator[bytes]:
        """Return the rest of the object in chunks of at most `size` bytes."""
        while chunk := self.read(size):
            yield chunk


class ObjectStore:
    """
    The objects of our two buckets.

    Every method that talks to storage raises StorageUnavailable when it is away and StorageRefused when it says no;
    the message names the operation, bucket and key.
    """

    def __init__(self, settings: Settings) -> None:
        self.public_bucket = settings.s3_public_bucket
        self.private_bucket = settings.s3_private_bucket
        self.clients = S3Clients(settings)
        self._asset_base = urls.get_asset_base_url(settings)

    def check_connection(self) -> None:
        """Return when storage answers: one HEAD of the public bucket."""
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
        Store an object by one request, streamed from the start of `body`; storage refuses bytes of another digest.

        One request and not several parts: only then is the checksum that a HEAD returns the digest of the bytes.

        Args:
            sha256: of the bytes, hex.
            size: in bytes; S3 takes up to 5 GiB in one request.
        """
        optional: dict[str, Any] = {"CacheControl": cache_control} if cache_control else {}
        if not isinstance(body, bytes):
            body.seek(0)  # from elsewhere, storage would wait for the rest until the time-out
        failpoint("storage.before_put")
        with translate_errors("put", bucket, key):
            self.clients.authenticated().put_object(
                Bucket=bucket,
                Key=key,
                Body=body,
                ContentLength=size,
                ContentType=content_type,
                ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                **optional,
            )
        failpoint("storage.after_put")

    @contextlib.contextmanager
    def open_object(
        self, bucket: str, key: str, *, byte_range: tuple[int, int] | None = None
    ) -> Iterator[ObjectReader]:
        """
        Give an object to read. Raises ObjectMissing when there is none.

        Args:
            span: its first and last byte to read; None: all of it.
        """
        optional: dict[str, Any] = {"Range": f"bytes={byte_range[0]}-{byte_range[1]}"} if byte_range else {}
        with translate_errors("get", bucket, key):
            answer = self.clients.authenticated().get_object(Bucket=bucket, Key=key, **optional)
        with contextlib.closing(answer["Body"]) as body:
            yield ObjectReader(body, answer["ContentLength"], answer.get("ContentType", ""), bucket, key)

    def head(self, bucket: str, key: str) -> ObjectStat | None:
        """Return size, digest and type of an object, None when there is none (or no such bucket: HEAD cannot tell)."""
        with translate_errors("head", bucket, key):
            try:
                answer = self.clients.authenticated().head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if get_http_status(error) == 404:
                    return None
                raise
        return ObjectStat(answer["ContentLength"], _whole(answer.get("ChecksumSHA256")), answer.get("ContentType", ""))

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        failpoint("storage.before_delete")
        with translate_errors("delete", bucket, key):
            self.clients.authenticated().delete_object(Bucket=bucket, Key=key)
        failpoint("storage.after_delete")

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        """Copy an object inside the store, up to 5 GiB; its age begins anew. Raises ObjectMissing for none."""
        failpoint("storage.before_copy")
        with translate_errors("copy", bucket, key):
            self.clients.authenticated().copy_object(
                Bucket=to_bucket, Key=to_key, CopySource={"Bucket": bucket, "Key": key}
            )
        failpoint("storage.after_copy")

    def list_objects(self, bucket: str, prefix: str, start_after: str = "") -> Iterator[ListedObject]:
        """Return the objects whose keys begin with `prefix`, by key, from after `start_after`; a page in memory."""
        pages = self.clients.authenticated().get_paginator("list_objects_v2")
        with translate_errors("list", bucket, prefix):
            for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=start_after):
                for item in page.get("Contents", ()):
                    yield ListedObject(item["Key"], item["Size"], item["LastModified"])

    def presign_get(self, bucket: str, key: str, seconds: int) -> str:
        """Return a URL at the public endpoint with which anyone can read the object for so many seconds."""
        with translate_errors("presign", bucket, key):
            return self.clients.presigning().generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=seconds
            )

    def build_asset_url(self, key: str) -> str:
        """Return where anyone reads an object of the public bucket."""
        return urls.build_asset_url(self._asset_base, key)


def from_settings(settings: Settings) -> ObjectStore:
    """Return the blobs of the configured store. Nothing is connected yet."""
    return ObjectStore(settings)


def _whole(checksum: str | None) -> str | None:
    """Return a base64 checksum as hex; None for one made of parts ("...-3")."""
    return None if checksum is None or "-" in checksum else base64.b64decode(checksum).hex()


class S3Clients:
    """The S3 clients of this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[tuple[int, str], S3Client] = {}

    def authenticated(self) -> "S3Client":
        """Return the client that reads and writes with our keys."""
        return self._client("signing", self._settings.s3_endpoint_url)

    def anonymous(self) -> "S3Client":
        """Return a client without keys: it sees what anyone sees."""
        return self._client("anonymous", self._settings.s3_endpoint_url, signature_version=UNSIGNED)

    def presigning(self) -> "S3Client":
        """Return the client that makes URLs for the host the outside reaches. It sends nothing."""
        endpoint, style = self._settings.s3_public_endpoint_url or self._settings.s3_endpoint_url, {}
        if endpoint is None and self._settings.s3_addressing_style == "auto":
            # "auto" signs for s3.amazonaws.com, which redirects to the bucket's region, where the signature is wrong.
            style = {"s3": {"addressing_style": "virtual"}}
        return self._client("public", endpoint, **style)

    def _client(self, kind: str, endpoint: str | None, **config: Any) -> "S3Client":
        name = (os.getpid(), kind)
        if name not in self._made:
            usual = {"signature_version": "s3v4", "s3": {"addressing_style": self._settings.s3_addressing_style}}
            self._made[name] = self._make(endpoint, {**usual, **config})
        return self._made[name]

    def _make(self, endpoint: str | None, config: dict[str, Any]) -> "S3Client":
        secret = self._settings.aws_secret_access_key
        # A session of its own: the default one of boto3 is not safe with threads.
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
