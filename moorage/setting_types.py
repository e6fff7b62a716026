"""Types of settings: how each is read from text, and what is refused."""

import difflib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from moorage import broker_urls
from moorage.formats import check_accept

# The providers that take submissions, and how many predictions moorage keeps in flight at each by default.
IN_FLIGHT: Final = {"replicate": 10, "fal": 10, "openai": 10}
# Age in days at which each kind of row is deleted; 0: never. See docs/reference/settings.md.
RETENTION_DAYS: Final = {"renders": 0.0, "bodies": 30.0, "dead_letters": 90.0, "rows": 90.0}
OWNER_LIMITS: Final = ("in_flight", "open_jobs", "jobs_per_hour", "stored_bytes")


def split(value: Any) -> Any:
    """Return the comma-separated parts of a text without surrounding spaces; any other value unchanged."""
    return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question that names the most similar known name; empty if none is similar."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def _parse_pairs(value: str, pattern: str, remedy: str, known: Collection[str] = (), noun: str = "") -> dict[str, str]:
    """Return the numbers of `NAME=NUMBER` separated by commas, by name. `known`: the names that exist, if not any."""
    pairs: dict[str, str] = {}
    for entry in split(value):
        name, _, number = (part.strip() for part in entry.partition("="))
        if known and name not in known:
            raise ValueError(f"{name!r} is not {noun}: {suggest(name, known) or 'write one of ' + ', '.join(known)}")
        if name in pairs:
            raise ValueError(f"{name} is given twice: write it once")
        if not re.fullmatch(pattern, number):
            raise ValueError(remedy.replace("NAME", name))
        pairs[name] = number
    return pairs


def parse_in_flight(value: Any) -> Any:
    """
    Return limits from `PROVIDER=NUMBER` and `PROVIDER:TEXT=NUMBER` separated by commas; a provider has a default.

    TEXT limits the models whose names contain it. `providers.load` refuses an unknown provider.
    """
    if not isinstance(value, str):
        return value  # pydantic validates the default, too
    text, remedy = re.sub(r"\s*:\s*", ":", value.lower()), "write NAME=NUMBER with a whole number above 0"
    limits = _parse_pairs(text, "0*[1-9][0-9]{0,8}", f"{remedy}, for example NAME=10")
    for name in limits:
        if name.endswith(":"):
            raise ValueError(f"write a part of the names of models after {name}, for example {name}video=2")
    return {**IN_FLIGHT, **{name: int(number) for name, number in limits.items()}}


def parse_owner_limits(value: Any) -> Any:
    """Return limits from `NAME=NUMBER` separated by commas; a name without a number has none."""
    if not isinstance(value, str):
        return value
    remedy = "write NAME=NUMBER with a whole number above 0, or NAME= for no limit"
    limits = _parse_pairs(value, "(0*[1-9][0-9]{0,17})?", remedy, OWNER_LIMITS, "a limit of owners")
    return {name: int(number) for name, number in limits.items() if number}


def parse_retention_days(value: Any) -> Any:
    """Return days from `NAME=DAYS` separated by commas; a name that is not given has its default."""
    if not isinstance(value, str):
        return {**RETENTION_DAYS, **value}
    remedy = "write NAME=DAYS with a number of days, for example NAME=30, or NAME=0 for ever"
    number = r"[0-9]{1,6}(\.[0-9]{1,6})?"
    days = _parse_pairs(value, number, remedy, RETENTION_DAYS, "kept for a number of days")
    return {**RETENTION_DAYS, **{name: float(number) for name, number in days.items()}}


def _listen_address(value: str) -> str:
    if value != "off" and not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[1-9][0-9]{0,4}", value):
        raise ValueError("write HOST:PORT, for example 127.0.0.1:9464, or off")
    return value


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("write a URL that starts with https:// (or http:// on a private network)")
    return value.rstrip("/")


def has_same_host_and_path(url: str, other: str) -> bool:
    """Return True if two URLs differ at most in scheme, default port and the case of the host."""
    places = [(re.sub(":(80|443)$", "", x.netloc.lower()), x.path) for x in (urlsplit(url), urlsplit(other))]
    return places[0] == places[1]


def _postgres_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("postgres://", "postgresql://")):
        raise ValueError("write postgresql://USER:PASSWORD@HOST:5432/DATABASE")
    return value


def _broker_url(value: SecretStr) -> SecretStr:
    broker_urls.parse_broker_url(value.get_secret_value())
    return SecretStr(broker_urls.replace_valkey(value.get_secret_value()))


def _long_secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 32:
        raise ValueError("has fewer than 32 characters: write one made with `openssl rand -hex 32`")
    return value


def _addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        host, _, port = entry.rpartition(":")
        try:
            ipaddress.ip_address(host.strip("[]"))
            if not re.fullmatch("0*[1-9][0-9]{0,4}", port) or int(port) > 65535:
                raise ValueError(port)
        except ValueError:
            raise ValueError(f"{entry!r} is not ADDRESS:PORT; write for example 127.0.0.1:8081") from None
    return value


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)]
LogFormat = Annotated[Literal["json", "console"], BeforeValidator(str.lower)]
Count = Annotated[int, Field(gt=0)]
Days = Annotated[float, Field(ge=0, le=36500)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]
Addresses = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(_addresses)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split)]
OwnerLimits = Annotated[Mapping[str, int], NoDecode, BeforeValidator(parse_owner_limits)]
InFlight = Annotated[Mapping[str, int], NoDecode, BeforeValidator(parse_in_flight)]
RetentionDays = Annotated[Mapping[str, float], NoDecode, BeforeValidator(parse_retention_days)]
Accept = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(check_accept)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
HttpUrls = Annotated[tuple[HttpUrl, ...], NoDecode, BeforeValidator(split)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url)]
LongSecret = Annotated[SecretStr, AfterValidator(_long_secret)]
