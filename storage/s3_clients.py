"""Clients of the S3 API: credentials, endpoints, timeouts."""

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

import boto3.session
import botocore.session
from botocore import UNSIGNED
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.loaders import Loader

from moorage.settings import Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 20
_SERVICES: Final = ("oidc", "portal.sso", "s3", "sts")  # the others of AWS give no credentials, either
WHOLE_BYTES: Final = 2**22  # of a body that is sent from memory
_ATTEMPTS: Final = 2  # further retries are the row's
_DESCRIPTIONS: Final = Loader()  # of the S3 API, 1 MB of JSON: parsed once, also for forked workers


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
        """Return the client that creates URLs for the public endpoint. It sends no requests to the store."""
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
        # Not the default session of boto3, which is not thread-safe.
        session = botocore.session.Session()
        for partition in _DESCRIPTIONS.load_data("endpoints")["partitions"]:  # of all of AWS: 5 of 7 MB in each process
            partition["services"] = {name: data for name, data in partition["services"].items() if name in _SERVICES}
        session.register_component("data_loader", _DESCRIPTIONS)
        session.set_config_variable("region", self._settings.aws_region)  # also used for STS and SSO
        key, secret, token = _get_static_credentials(self._settings)
        client: S3Client = boto3.session.Session(botocore_session=session).client(
            "s3",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            endpoint_url=endpoint,
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                tcp_keepalive=True,
                user_agent="moorage",  # botocore would build a long one twice for each request
                # Only what moorage itself asks for: by default botocore adds checksum headers that some stores refuse.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                **config,
            ),
        )
        client.meta.events.register("before-sign.s3.PutBucketPolicy", _use_content_md5)
        client.meta.events.register("before-sign.s3.PutObject", _send_at_once)
        if endpoint is not None:
            client.meta.events.register("before-parameter-build.s3", _follow_no_redirect)
        return client


def _get_static_credentials(settings: Settings) -> tuple[str, str, str | None] | tuple[None, None, None]:
    """Return the keys of the settings, which boto3 cannot read from `.env` and `..._FILE`; without them it searches."""
    if settings.aws_access_key_id is None or settings.aws_secret_access_key is None:
        return None, None, None
    token = settings.aws_session_token
    secret = settings.aws_secret_access_key.get_secret_value()
    return settings.aws_access_key_id, secret, token.get_secret_value() if token else None


def _use_content_md5(request: AWSRequest, **_event: object) -> None:
    """Replace the checksum that botocore requires for a policy: every store knows Content-MD5."""
    for name in ("x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm"):
        del request.headers[name]  # no error if it is missing
    body = request.body.encode() if isinstance(request.body, str) else request.body
    request.headers["Content-MD5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _send_at_once(request: AWSRequest, **_event: object) -> None:
    """Do not wait for the store's consent to a body that is in memory: it costs a round trip."""
    if int(request.headers.get("Content-Length") or WHOLE_BYTES + 1) <= WHOLE_BYTES:
        del request.headers["Expect"]


def _follow_no_redirect(context: dict[str, Any], **_event: object) -> None:
    """Mark a request as redirected already: only AWS has regions, and botocore asks others for them without end."""
    context.setdefault("s3_redirect", {})["redirected"] = True
