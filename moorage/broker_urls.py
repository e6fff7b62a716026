"""
The broker's URL, which may name several servers, sentinels and certificates; pure.

kombu takes a primary's name, a sentinel's password and certificates as options beside the URL. Here they are its
parameters, so that one setting names a broker.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

_SCHEMES: Final = ("redis", "rediss", "amqp", "amqps", "sentinel", "memory")
_VALKEY: Final = re.compile(r"(^|;)valkey(s?)://")  # a URL may name several brokers
_FORMS: Final = (
    "write redis://:PASSWORD@HOST:6379/0, sentinel://:PASSWORD@HOST:26379/0?master_name=NAME or"
    " amqp://USER:PASSWORD@HOST:5672/"
)
_SENTINEL: Final = ("master_name", "sentinel_username", "sentinel_password")
_CERTIFICATES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "redis": (), "rediss": _CERTIFICATES, "sentinel": _SENTINEL, "amqps": _CERTIFICATES
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """What kombu connects by: the URL without parameters, TLS options or None, the parameters by name."""

    url: str
    ssl: Mapping[str, Any] | None
    parameters: Mapping[str, str]

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]


def replace_valkey(url: str) -> str:
    """Return the URL under Redis' name: Valkey speaks its protocol, and kombu knows it by that name alone."""
    return _VALKEY.sub(r"\1redis\2://", url)


def parse_broker_url(url: str) -> BrokerSpec:
    """Parse the broker's URL. Raises ValueError that says what to write and contains no secret."""
    urls = replace_valkey(url).split(";")
    schemes = {each.partition("://")[0] for each in urls}
    if any("://" not in each for each in urls) or not schemes <= set(_SCHEMES):
        raise ValueError(_FORMS)
    if len(schemes) > 1:
        raise ValueError("write one scheme for all servers of the list")
    scheme = schemes.pop()
    if scheme not in _PARAMETERS:
        return BrokerSpec(";".join(urls), None, {})
    parts = [urlsplit(each) for each in urls]
    parameters = {name: value for part in parts for name, value in parse_qsl(part.query)}
    if unknown := sorted(set(parameters) - set(_PARAMETERS[scheme])):
        if set(unknown) & {"ssl_cert_reqs", "ssl_check_hostname"}:
            remedy = "leave it out, and append ?ssl_ca_certs=FILE for an issuer of your own"
            raise ValueError(f"{', '.join(unknown)}: the broker's certificate is always verified: {remedy}")
        known = ", ".join(_PARAMETERS[scheme]) or "none; TLS: write rediss://"
        raise ValueError(f"{', '.join(unknown)} is no parameter of {scheme}:// ({known})")
    servers = [(part.netloc, part.path) for part in parts]
    if scheme == "sentinel":
        if not parameters.get("master_name"):
            raise ValueError("append ?master_name=NAME, the name of the primary in the sentinels' configuration")
        servers = _share_account(servers)
    plain = ";".join(f"{scheme}://{netloc}{path}" for netloc, path in servers)
    return BrokerSpec(plain, _build_tls_options(scheme, parameters), parameters)


def _build_tls_options(scheme: str, parameters: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Have every certificate verified: without options kombu accepts any of Redis, and of RabbitMQ any host."""
    if scheme == "rediss":
        return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **parameters}
    if scheme == "amqps":  # py-amqp's names; worker/broker_transports.py adds the host
        return {"cert_reqs": ssl.CERT_REQUIRED, **{key.removeprefix("ssl_"): x for key, x in parameters.items()}}
    return None


def _share_account(servers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Give every sentinel the account and database of the first that has one: kombu uses those of the one in turn."""
    account = next((netloc.rpartition("@")[0] + "@" for netloc, _ in servers if "@" in netloc), "")
    database = next((path for _, path in servers if path.strip("/")), "")
    return [(account + netloc.rpartition("@")[2], database) for netloc, _ in servers]
