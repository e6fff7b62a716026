r"""
Parsing of URLs, and the hosts that files may be downloaded from; pure.

URLs are parsed by `urllib3.util.parse_url`, the parser that requests connects by. `urllib.parse.urlsplit` parses
`http://127.0.0.1\@cdn.example/` as host cdn.example while requests connects to 127.0.0.1, so a check based on it can
be bypassed.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from moorage.errors import ConfigError, DownloadRefused
from moorage.text import is_storable, to_storable

MAX_URL_CHARS: Final = 8192
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_USER: Final = re.compile(r"[^/?#]*//[^/?#]*@")  # includes an empty one, which parse_url drops
_NAME: Final = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_MAX_SHOWN: Final = 253
_ORIGIN: Final = re.compile(r"[^:/?#]+:(//[^/?#\\]*)?")
# Characters that browsers escape (URL Standard, percent-encode sets), because they cannot stand in a request line.
_UNSAFE_PATH: Final = re.compile(r"[^!#-;=?-\[\]_a-z|~]")
_UNSAFE_QUERY: Final = re.compile(r"[^!#-;=?-\[\]^_`a-~]")


def find_source_host(url: str) -> str:
    """Return the host of a URL, with its port, as the function source_host of the schema; '' if it is no URL."""
    rest = url.split("://")[1] if "://" in url else ""
    return rest.split("/")[0].split("?")[0].split("@")[-1].lower()


class Endpoint(NamedTuple):
    """Scheme ("http" or "https"), host in lower case without brackets, port."""

    scheme: str
    host: str
    port: int


def parse_endpoint(url: str) -> Endpoint:
    """Return the scheme, host and port of a URL. Raises DownloadRefused if it is not a plain http: or https: URL."""
    if len(url) > MAX_URL_CHARS:
        raise DownloadRefused(f"the URL has {len(url)} characters, more than {MAX_URL_CHARS}")
    if _CONTROL.search(url) or not is_storable(url):
        raise DownloadRefused("the URL contains a control or invalid character")
    if "\\" in url:
        raise DownloadRefused("the URL contains a backslash, which is ambiguous")
    try:
        parts = parse_url(url)
    except (LocationParseError, ValueError) as error:  # ValueError: a label that IDNA cannot encode
        raise DownloadRefused("the URL cannot be parsed") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise DownloadRefused("the URL is neither https: nor http:")
    if parts.auth is not None or _USER.match(url):
        raise DownloadRefused("the URL contains a user name or password")
    if not parts.host:
        raise DownloadRefused("the URL has no host")
    port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    return Endpoint(parts.scheme, _canonical(parts.host), port)


def build_request_target(url: str) -> str:
    """
    Return the path and query of a URL as its server receives them: byte for byte, without the fragment.

    Escapes are not normalized and dots not resolved: a signature may cover the text. Only characters that cannot stand
    in a request line are escaped, as UTF-8.
    """
    origin = _ORIGIN.match(url)
    path, mark, query = url[origin.end() if origin else 0 :].partition("#")[0].partition("?")
    path = _UNSAFE_PATH.sub(_escape, path)
    return (path if path.startswith("/") else f"/{path}") + mark + _UNSAFE_QUERY.sub(_escape, query)


def restore_target(prepared: str, url: str) -> str:
    """Return a URL that was prepared for a request, with encoded host, with the target of the original URL."""
    origin = _ORIGIN.match(prepared)
    return origin[0] + build_request_target(url) if origin and origin[1] else prepared


def resolve_redirect(base: str, location: str) -> str:
    """
    Return the URL that a Location header names, seen from `base`; only a relative path is changed.

    `location`: decoded as Latin-1, as http.client does; bytes above 127 are escaped as they are.
    """
    target = "".join(char if char < "\x80" else _escape_bytes(char.encode("latin-1", "replace")) for char in location)
    target = target.strip()
    origin = _ORIGIN.match(base)
    start = origin[0] if origin else ""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", target):
        return target
    if target.startswith("//"):
        return f"{start.partition(':')[0]}:{target}"
    path = base[len(start) :].partition("#")[0].partition("?")[0]
    if target.startswith("/"):
        return start + target
    if not target or target[0] in "?#":
        return start + path + target
    return start + _merge_paths(path, target)


def _merge_paths(path: str, target: str) -> str:
    """Resolve a relative reference against the path of its base (RFC 3986, 5.2)."""
    relative, rest = re.match(r"([^?#]*)(.*)", target, re.DOTALL).groups()  # type: ignore[union-attr]  # always matches
    segments = (path or "/").split("/")[:-1]
    *parts, last = relative.split("/")
    for part in [*parts, "" if last in (".", "..") else last] if last != ".." else [*parts, "..", ""]:
        if part == "..":
            del segments[max(len(segments) - 1, 1) :]
        elif part != ".":
            segments.append(part)
    return "/".join(segments) + rest


def _escape(match: re.Match[str]) -> str:
    return _escape_bytes(match[0].encode("utf-8", "surrogatepass"))


def _escape_bytes(data: bytes) -> str:
    return quote_from_bytes(data, safe="")


@dataclass(frozen=True, slots=True)
class HostPattern:
    """
    An allowed host: "files.example", "*.files.example" (its subdomains only), "[::1]:8443".

    Without a port it matches the scheme's default port, and any exact ADDRESS:PORT in MOORAGE_EGRESS_ALLOW.
    """

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str, setting: str) -> "HostPattern":
        """Parse a pattern; raises ConfigError that names the setting."""
        host, port = _split_port(text.lower())
        host_is_right = _NAME.fullmatch(host) or _is_address(host)
        port_is_right = not port or (_PORT.fullmatch(port) and int(port) < 65536)
        if not host_is_right or not port_is_right:
            shown = text[:_MAX_SHOWN]
            raise ConfigError(f"{setting}: {shown!r} is not a host; write for example files.example or *.files.example")
        return cls(_canonical(host), int(port) if port else None)

    def matches(self, endpoint: Endpoint, *, any_port: bool = False) -> bool:
        """Return True if the endpoint is allowed; `any_port`: its port was checked elsewhere."""
        is_default = any_port or endpoint.port == _DEFAULT_PORTS[endpoint.scheme]
        if not (is_default if self.port is None else endpoint.port == self.port):
            return False
        if self.host.startswith("*."):
            return endpoint.host.endswith(self.host[1:]) and len(endpoint.host) > len(self.host) - 1
        return endpoint.host == self.host


class HostAllowlist:
    """
    The hosts of one provider's files (`HostPattern`). Raises ConfigError if a pattern of `setting` is invalid.

    `egress_allow`: exact ADDRESS:PORT of private addresses, for which http: is allowed, too.
    """

    def __init__(self, patterns: Iterable[str], egress_allow: Iterable[str], *, setting: str) -> None:
        self._patterns = tuple(HostPattern.parse(pattern, setting) for pattern in patterns)
        splits = (entry.rpartition(":") for entry in egress_allow)
        self._egress = frozenset((_canonical(host), int(port)) for host, _, port in splits)
        self._setting = setting

    def refusal_reason(self, url: str, *, any_host: bool = False) -> str | None:
        """
        Return None if a URL may be downloaded, else the reason, which names the host and the setting to change.

        `any_host`: its host may be any, by https:. The address is checked when it is downloaded.
        """
        try:
            endpoint = parse_endpoint(url)
        except DownloadRefused as error:
            return str(error)
        shown = _shown(endpoint)
        if endpoint.scheme == "http" and not self.is_exempt(endpoint):
            return f"http: is not allowed for {shown}: use https:, or an exact address in MOORAGE_EGRESS_ALLOW"
        if not any_host and not self.contains(endpoint):
            return f"host {shown} is not allowed: add it to {self._setting}"
        return None

    def contains(self, endpoint: Endpoint) -> bool:
        """Return True if the host and port are allowed, by any scheme."""
        return any(pattern.matches(endpoint, any_port=self.is_exempt(endpoint)) for pattern in self._patterns)

    def is_safe_for_secrets(self, url: str) -> bool:
        """Return True if a token may be sent there: over https:, or to an exact address in MOORAGE_EGRESS_ALLOW."""
        endpoint = parse_endpoint(url)
        return endpoint.scheme == "https" or self.is_exempt(endpoint)

    def is_exempt(self, endpoint: Endpoint) -> bool:
        """Return True for an exact address in MOORAGE_EGRESS_ALLOW."""
        return (endpoint.host, endpoint.port) in self._egress


def _shown(endpoint: Endpoint) -> str:
    host = to_storable(endpoint.host, _MAX_SHOWN)
    host = f"[{host}]" if ":" in host else host
    return host if endpoint.port == _DEFAULT_PORTS[endpoint.scheme] else f"{host}:{endpoint.port}"


def _split_port(text: str) -> tuple[str, str]:
    """Return host and port as text; the port is "" if there is none, and "?" if nothing follows the colon."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or _is_address(text):
        return text, ""
    return host, port or "?"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _canonical(host: str) -> str:
    bare = host.lower().strip("[]")
    return str(ipaddress.ip_address(bare)) if _is_address(bare) else bare
