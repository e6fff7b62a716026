"""The check of URLs that an application or an operator asks to keep; no name is looked up."""

import socket

from egress import ip_ranges
from moorage.settings import Settings
from moorage.urls import HostAllowlist, parse_endpoint


def find_problem(settings: Settings, url: str) -> str | None:
    """Return why a URL can never be downloaded, as far as it tells; None if it may be."""
    hosts = HostAllowlist(settings.keep_hosts, settings.egress_allow, setting="MOORAGE_KEEP_HOSTS")
    if reason := hosts.refusal_reason(url, any_host=not settings.keep_hosts):
        return reason
    endpoint = parse_endpoint(url)
    host = "127.0.0.1" if f".{endpoint.host}".rstrip(".").endswith(".localhost") else endpoint.host
    try:
        ip = str(socket.getaddrinfo(host, endpoint.port, flags=socket.AI_NUMERICHOST)[0][4][0])
    except socket.gaierror:  # a name
        return None
    except UnicodeError:
        return "the host is no host name: each part between dots has 1 to 63 characters"
    kind = None if hosts.is_exempt(endpoint) else ip_ranges.classify_nonpublic(ip)
    return kind and f"{endpoint.host} is not a public address ({kind}): it is never connected to"
