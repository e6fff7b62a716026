"""
A proxy that gives a real SeaweedFS the limits of other S3 stores, imitated from their documentation and public reports.

The stores themselves were not tried: a test that passes here shows that moorage copes with the described behaviour.

Sources, read in November 2026: Backblaze B2, "S3-Compatible API" (unsupported headers) and cyberduck#16107,
xen-orchestra#8358 (`x-amz-checksum-mode`); Cloudflare R2, "S3 API compatibility" (no policies), workers-sdk#16970
(a wrong SHA-256 is refused) and cloudflare-docs#19236 (CRC32 is refused); Supabase, "S3 Compatibility" (no checksums,
no policies), whose server passes files on in parts of 5 MB.
"""

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

CHECKSUM_HEADERS = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm")


@dataclass(frozen=True)
class Limits:
    """How a store differs from the one behind the proxy; header names are prefixes."""

    refused_headers: tuple[str, ...] = ()  # 400 InvalidArgument, as B2
    ignored_headers: tuple[str, ...] = ()  # of requests
    hidden_headers: tuple[str, ...] = ()  # of responses
    policy_status: int | None = None
    anonymous_status: int | None = None
    etag: Callable[[str, int], str] = field(default=lambda etag, _size: etag)  # from the MD5 and the size
    echoes_sha256: bool = False  # HEAD returns the checksum that was sent, whatever the bytes


def split_etag(etag: str, size: int) -> str:
    return f'"{etag.strip(chr(34))[::-1]}-2"' if size > 5_000_000 else etag


B2 = Limits(refused_headers=CHECKSUM_HEADERS, policy_status=501, anonymous_status=401)
R2 = Limits(refused_headers=("x-amz-checksum-crc",), policy_status=501, anonymous_status=400)
SUPABASE = Limits(
    ignored_headers=(*CHECKSUM_HEADERS, "content-md5"),
    hidden_headers=("x-amz-checksum-",),
    policy_status=501,
    anonymous_status=501,
    etag=split_etag,
)
WITHOUT_SHA256_ON_HEAD = Limits(hidden_headers=("x-amz-checksum-",))
WITHOUT_CHECKSUMS = Limits(
    refused_headers=(*CHECKSUM_HEADERS, "content-md5"), etag=lambda _etag, size: f'"{size:016x}"'
)
ECHOING = Limits(ignored_headers=CHECKSUM_HEADERS, echoes_sha256=True)


class _UnsignedPayload(S3SigV4Auth):
    def payload(self, _request: Any) -> str:
        return "UNSIGNED-PAYLOAD"


class LimitedStore:
    """Runs the proxy on a free port of 127.0.0.1; signs what it forwards again, because it changes headers."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str, limits: Limits) -> None:
        self.limits = limits
        self.requests: list[tuple[str, str]] = []  # method, path with query
        self.credentials: set[tuple[str, str | None]] = set()  # access keys, and session tokens sent with them
        self.corrupt = False  # while set, what is stored differs from what was sent, with its own ETag
        self._target = urlsplit(endpoint).netloc
        self._auth = _UnsignedPayload(Credentials(access_key, secret_key), "s3", "us-east-1")
        self._sent: dict[str, str] = {}
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Return status, code and message with which the store refuses a request."""
        query, limits = parse_qs(urlsplit(path).query, keep_blank_values=True), self.limits
        for name in headers:
            if name.startswith(limits.refused_headers or ("\n",)):
                return 400, "InvalidArgument", f"Unsupported header '{name}' received for this API call."
        if "policy" in query and limits.policy_status:
            return limits.policy_status, "NotImplemented", "A header or query you provided is not implemented."
        is_anonymous = "authorization" not in headers and "X-Amz-Signature" not in query
        if is_anonymous and limits.anonymous_status:
            return limits.anonymous_status, "InvalidArgument", "Authorization"
        return None

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, list[Any], bytes]:
        if method == "PUT" and "x-amz-checksum-sha256" in headers:
            self._sent[path] = headers["x-amz-checksum-sha256"]
        kept = {n: v for n, v in headers.items() if not n.startswith(self.limits.ignored_headers or ("\n",))}
        if self.corrupt and method == "PUT" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
            kept.pop("content-md5", None)
        if "authorization" in kept:
            access_key = kept["authorization"].partition("Credential=")[2].partition("/")[0]
            self.credentials.add((access_key, kept.get("x-amz-security-token")))
            for name in ("authorization", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token", "expect"):
                kept.pop(name, None)
            request = AWSRequest(method, f"http://{kept['host']}{path}", headers=kept)
            self._auth.add_auth(request)
            kept = dict(request.headers.items())
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            connection.request(method, path, body=body, headers=kept)
            response = connection.getresponse()
            return response.status, self._change(method, path, response), response.read()
        finally:
            connection.close()

    def _change(self, method: str, path: str, response: http.client.HTTPResponse) -> list[tuple[str, str]]:
        changed = []
        size = int(response.getheader("Content-Length") or 0)
        for name, value in response.getheaders():
            if name.lower().startswith(self.limits.hidden_headers or ("\n",)):
                continue
            changed.append((name, self.limits.etag(value, size) if name.lower() == "etag" else value))
        if method == "HEAD" and self.limits.echoes_sha256 and path in self._sent:
            changed.append(("x-amz-checksum-sha256", self._sent[path]))
        return changed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: LimitedStore

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.store.requests.append((self.command, self.path))
        if refusal := self.store.refusal(self.path, headers):
            status, code, message = refusal
            payload = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self._send(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(payload)))], payload)
        else:
            self._send(*self.store.forward(self.command, self.path, headers, body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 (the names of the base class)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() != "transfer-encoding":
                self.send_header(name, value)
        if "content-length" not in names and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass
