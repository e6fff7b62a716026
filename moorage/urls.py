"""
What a URL points to, and whether that host is allowed; pure.

URLs are read by `urllib3.util.parse_url`, the parser that requests connects by. `urllib.parse.urlsplit` reads
`http://127.0.0.1\\@cdn.example/` as host cdn.example while requests connects to 127.0.0.1, so a guard built on it is
open.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from moorage.errors import ConfigError, DownloadRefused
from moorage.text import is_storable, to_storable

MAX_URL_CHARS: Final = 8192
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_USER: Final = re.compile(r"[^/?#]*//[^/?#]*@")  # also an empty one, which parse_url drops
_NAME: Final = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_MAX_SHOWN: Final = 253


class Endpoint(NamedTuple):
    """Where a URL leads: scheme ("http" or "https"), host in lower case without brackets, port."""

    scheme: str
    host: str
    port: int


def parse_endpoint(url: str) -> Endpoint:
    """
    Return where a URL leads.

    Raises:
        DownloadRefused: it is not a plain http: or https: URL; the message says why.
    """
    if len(url) > MAX_URL_CHARS:
        raise DownloadRefused(f"the URL has {len(url)} characters, more than {MAX_URL_CHARS}")
    if _CONTROL.search(url) or not is_storable(url):
        raise DownloadRefused("the URL holds a control character or what is no text")
    if "\\" in url:
        raise DownloadRefused("the URL holds a backslash, which parsers read in two ways")
    try:
        parts = parse_url(url)
    except (LocationParseError, ValueError) as error:  # ValueError: a label that IDNA cannot encode
        raise DownloadRefused("the URL cannot be read") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise DownloadRefused("the URL is neither https: nor http:")
    if parts.auth is not None or _USER.match(url):
        raise DownloadRefused("the URL holds a user name or password")
    if not parts.host:
        raise DownloadRefused("the URL names no host")
    port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    return Endpoint(parts.scheme, _canonical(parts.host), port)


@dataclass(frozen=True, slots=True)
class HostPattern:
    """
    A host that files may be fetched from: "files.example", "*.files.example" (below it, not itself), "[::1]:8443".

    Without a port it stands for the scheme's own port; an exact ADDRESS:PORT opened by MOORAGE_EGRESS_ALLOW is
    matched too.
    """

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str, setting: str) -> "HostPattern":
        """Read a pattern; raises ConfigError that names the setting."""
        host, port = _split_port(text.lower())
        host_is_right = _NAME.fullmatch(host) or _is_address(host)
        port_is_right = not port or (_PORT.fullmatch(port) and int(port) < 65536)
        if not host_is_right or not port_is_right:
            shown = text[:_MAX_SHOWN]
            raise ConfigError(f"{setting}: {shown!r} is no host; write for example files.example or *.files.example")
        return cls(_canonical(host), int(port) if port else None)

    def matches(self, endpoint: Endpoint, *, any_port: bool = False) -> bool:
        """Return whether the endpoint is meant; `any_port` when its port was checked elsewhere."""
        if self.port is None:
            port_fits = any_port or endpoint.port == _DEFAULT_PORTS[endpoint.scheme]
        else:
            port_fits = endpoint.port == self.port
        return port_fits and self._matches_host(endpoint.host)

    def _matches_host(self, host: str) -> bool:
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and len(host) > len(self.host) - 1
        return host == self.host


class HostAllowlist:
    """
    The hosts of one provider's files, and the exceptions for private addresses.

    Args:
        patterns: as `HostPattern` reads them.
        egress_allow: exact ADDRESS:PORT that plain http: may go to as well.
        setting: the name of the setting the patterns come from, for messages.

    Raises:
        ConfigError: a pattern is none.
    """

    def __init__(self, patterns: Iterable[str], egress_allow: Iterable[str], *, setting: str) -> None:
        self._patterns = tuple(HostPattern.parse(pattern, setting) for pattern in patterns)
        self._egress = frozenset(_address_and_port(entry) for entry in egress_allow)
        self._setting = setting

    def refusal_reason(self, url: str) -> str | None:
        """Return None when a URL may be fetched, else why not, with the host and the setting that would allow it."""
        try:
            endpoint = parse_endpoint(url)
        except DownloadRefused as error:
            return str(error)
        is_exempt = (endpoint.host, endpoint.port) in self._egress
        shown = _shown(endpoint)
        if endpoint.scheme == "http" and not is_exempt:
            return f"http: is not fetched from {shown}: only https:, or an exact address in MOORAGE_EGRESS_ALLOW"
        if not any(pattern.matches(endpoint, any_port=is_exempt) for pattern in self._patterns):
            return f"host {shown} is not allowed: add it to {self._setting}"
        return None

    def is_safe_for_secrets(self, url: str) -> bool:
        """Return whether a token may travel there: over https:, or to an exact address of MOORAGE_EGRESS_ALLOW."""
        endpoint = parse_endpoint(url)
        return endpoint.scheme == "https" or (endpoint.host, endpoint.port) in self._egress


def _shown(endpoint: Endpoint) -> str:
    host = to_storable(endpoint.host, _MAX_SHOWN)
    host = f"[{host}]" if ":" in host else host
    return host if endpoint.port == _DEFAULT_PORTS[endpoint.scheme] else f"{host}:{endpoint.port}"


def _split_port(text: str) -> tuple[str, str]:
    """Return host and port as text; the port is "" where there is none, and "?" where a colon has none after it."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or _is_address(text):
        return text, ""
    return host, port or "?"


def _address_and_port(entry: str) -> tuple[str, int]:
    host, _, port = entry.rpartition(":")
    return _canonical(host), int(port)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _canonical(host: str) -> str:
    bare = host.lower().strip("[]")
    return str(ipaddress.ip_address(bare)) if _is_address(bare) else bare
