"""boto3 clients: made when first used, one set a process, so that nothing is shared across a fork."""

import os
from typing import TYPE_CHECKING, Any, Final

import boto3.session
from botocore import UNSIGNED
from botocore.config import Config

from moorage.settings import Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 20
_ATTEMPTS: Final = 2  # the row's own retry does the rest, with a longer breath


class Clients:
    """The S3 clients of this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[tuple[int, str], S3Client] = {}

    def signing(self) -> "S3Client":
        """Return the client that reads and writes with our keys."""
        return self._client("signing", self._settings.s3_endpoint_url)

    def anonymous(self) -> "S3Client":
        """Return a client without keys: it sees what anyone sees."""
        return self._client("anonymous", self._settings.s3_endpoint_url, signature_version=UNSIGNED)

    def public(self) -> "S3Client":
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
        return boto3.session.Session().client(
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
