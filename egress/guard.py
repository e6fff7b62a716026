"""
HTTP sessions that cannot reach a private address.

The guard checks the address that a socket connects to. A check of the URL can be bypassed by names that resolve to
private addresses, by redirects, and by URLs that two parsers parse differently.
"""

import contextvars
import functools
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import ConnectionPool, HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context

from egress import ip_ranges
from egress.sockets import PlainSocket, TlsSocket
from media.limits import Limits
from moorage.certificates import iterate_causes
from moorage.errors import DownloadRefused
from moorage.urls import build_request_target

Resolver = Callable[..., list[Any]]  # socket.getaddrinfo or a substitute
_MAX_ADDRESSES: Final = 4  # tried for one connection, each with its own timeout
_request_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("moorage_request_target", default=None)
_is_reused: contextvars.ContextVar[bool] = contextvars.ContextVar("moorage_reused_connection", default=False)


class EgressGuard:
    """
    Decides which addresses may be connected to, and creates sessions that enforce it.

    `allow` has the exact private addresses that are allowed ("127.0.0.1:8081").
    """

    def __init__(self, allow: Collection[str] = (), *, resolve: Resolver = socket.getaddrinfo) -> None:
        self._allow = frozenset(_parse_endpoint(entry) for entry in allow)
        self._resolve = resolve

    def refusal_reason(self, ip: str, port: int) -> str | None:
        reason = ip_ranges.classify_nonpublic(ip)
        return None if reason and (_canonical(ip), port) in self._allow else reason

    def new_session(self, limits: Limits) -> requests.Session:
        """Return a session without retries, cookies, and proxies or credentials from the environment."""
        session = requests.Session()
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.headers.clear()
        session.headers.update({"User-Agent": "moorage", "Accept": "*/*", "Accept-Encoding": "identity"})
        session.adapters.clear()
        adapter = _Adapter(self, limits)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    def connect(self, conn: HTTPConnection, seconds: float) -> socket.socket:
        """Connect to the first allowed address of the host that accepts; raises DownloadRefused if there is none."""
        last_error: OSError | None = None
        for family, address in self._resolve_allowed(conn):
            try:
                return self._dial(family, address, conn, seconds)
            except OSError as error:
                last_error = error
        if isinstance(last_error, TimeoutError):
            raise ConnectTimeoutError(conn, f"no connection to {conn.host} within {seconds:g} s") from last_error
        raise NewConnectionError(conn, f"no connection to {conn.host}: {last_error}") from last_error

    def _resolve_allowed(self, conn: HTTPConnection) -> list[tuple[int, Any]]:
        host, port = conn._dns_host.strip("[]"), conn.port
        try:
            addresses = self._resolve(host, port, 0, socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(conn.host, conn, error) from error
        except UnicodeError as error:  # a label of more than 63 characters
            raise DownloadRefused(f"not a host name: {error}", facts={"host": conn.host}) from error
        refused = {str(entry[4][0]): self.refusal_reason(str(entry[4][0]), port) for entry in addresses}
        allowed = [(entry[0], entry[4]) for entry in addresses if not refused[str(entry[4][0])]]
        if not allowed:
            raise _build_refusal(conn.host, port, refused)
        return allowed[:_MAX_ADDRESSES]

    def _dial(self, family: int, address: Any, conn: HTTPConnection, seconds: float) -> socket.socket:
        sock = PlainSocket(family, socket.SOCK_STREAM)
        try:
            for option in conn.socket_options or ():
                sock.setsockopt(*option)
            socket.socket.settimeout(sock, seconds)  # a connect cannot be resumed: one wait, no steps
            sock.connect(address)
            sock.settimeout(seconds)
            peer = str(sock.getpeername()[0])
            if reason := self.refusal_reason(peer, conn.port):
                raise _build_refusal(conn.host, conn.port, {peer: reason})
        except BaseException:
            sock.close()
            raise
        return sock


class _Adapter(HTTPAdapter):
    """Opens connections through the guard, with one shared TLS context; sends the URL of a request as it is written."""

    def __init__(self, egress: EgressGuard, limits: Limits) -> None:
        self._egress, self._limits = egress, limits
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _guarded_pools(self._egress, self._limits.connect_seconds)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        token = _request_target.set(build_request_target(request.url or ""))
        try:
            return super().send(request, *args, **kwargs)
        except requests.ConnectionError as error:  # a server may close an idle connection at any moment
            is_closed = any(isinstance(cause, ConnectionError) for cause in iterate_causes(error))
            if not (_is_reused.get() and is_closed and request.method == "GET"):
                raise
            return super().send(request, *args, **kwargs)
        finally:
            _request_target.reset(token)

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: Any,  # noqa: ARG002 (the library's signature; the context always verifies)
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002
        cert: Any = None,  # noqa: ARG002
    ) -> ConnectionPool:
        """Return the pool of the host; never a proxy, always verified."""
        tls = {"ssl_context": load_tls_context()}
        pool: ConnectionPool = self.poolmanager.connection_from_url(request.url or "", tls)
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing: the shared context has the roots, which the library would load for every connection."""


class _Response(http.client.HTTPResponse):
    """Skips every interim response; the base class skips 100 only and takes 103 (Early Hints) for the last one."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]  # not in the stubs
        is_interim = 100 < status < 200 and status != http.client.SWITCHING_PROTOCOLS
        return version, http.client.CONTINUE if is_interim else status, reason


class _KeptConnection:
    """
    Is opened through the guard, and notes whether it has served a request before.

    Sends the target as the URL has it: urllib3 rewrites its escapes, which breaks a signature over the text.
    """

    is_reused = False

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        _is_reused.set(self.is_reused)
        super().putrequest(method, _request_target.get() or url, *args, **kwargs)  # type: ignore[misc]  # other base

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]  # other base
        self.is_reused = True
        return response


def _guarded_pools(egress: EgressGuard, seconds: float) -> dict[str, type[HTTPConnectionPool]]:
    def connect(conn: Any) -> socket.socket:
        conn.is_reused = False
        return egress.connect(conn, seconds)

    class Http(_KeptConnection, HTTPConnection):
        response_class, _new_conn = _Response, connect

    class Https(_KeptConnection, HTTPSConnection):
        response_class, _new_conn = _Response, connect

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


@functools.cache
def load_tls_context() -> ssl.SSLContext:
    """Return the context with the roots, which take 40 ms of processor time and 5 MB: forked processes inherit it."""
    context = create_urllib3_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    context.load_default_certs()  # includes the system's roots; SSL_CERT_FILE adds a private authority
    context.sslsocket_class = TlsSocket
    return context


def _build_refusal(host: str, port: int, refused: Mapping[str, str | None]) -> DownloadRefused:
    listed = ", ".join(f"{ip} ({reason})" for ip, reason in refused.items()) or "no address"
    return DownloadRefused(
        f"{host} resolves to {listed}, which must not be connected to",
        facts={"host": host, "port": port, "refused": dict(refused)},
    )


def _canonical(ip: str) -> str:
    """Return an address in its canonical form; any other text unchanged, which matches nothing."""
    try:
        return str(ipaddress.ip_address(ip))
    except ValueError:
        return ip


def _parse_endpoint(entry: str) -> tuple[str, int]:
    host, _, port = entry.rpartition(":")
    return _canonical(host.strip("[]")), int(port)
