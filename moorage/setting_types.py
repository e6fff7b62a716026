"""Types of settings: how each is read from text, and what is refused."""

import difflib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping
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


def _in_case_of(convert: Callable[[str], str]) -> BeforeValidator:
    return BeforeValidator(lambda value: convert(value) if isinstance(value, str) else value)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question that names the most similar known name; empty if none is similar."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def parse_in_flight(value: Any) -> Any:
    """
    Return limits from `PROVIDER=NUMBER` and `PROVIDER:TEXT=NUMBER` separated by commas; a provider has a default.

    TEXT limits the models whose names contain it. `providers.load` refuses an unknown provider.
    """
    if not isinstance(value, str):
        return value  # pydantic validates the default, too
    limits: dict[str, int] = {}
    for entry in split(value):
        name, _, number = (part.strip() for part in entry.partition("="))
        provider, colon, text = (part.strip() for part in name.lower().partition(":"))
        if colon and not text:
            raise ValueError(f"write a part of the names of models after {provider}:, for example {provider}:video=2")
        if not re.fullmatch("[0-9]{1,9}", number) or int(number) == 0:
            raise ValueError(f"write {name}=NUMBER with a whole number above 0, for example {name}=10")
        name = provider + colon + text
        if name in limits:
            raise ValueError(f"{name} is given twice: write it once")
        limits[name] = int(number)
    return {**IN_FLIGHT, **limits}


def _parse_pairs(value: str, known: Collection[str], noun: str) -> dict[str, str]:
    """Return the values of `NAME=VALUE` separated by commas, by name."""
    pairs: dict[str, str] = {}
    for entry in split(value):
        name, _, number = (part.strip() for part in entry.partition("="))
        if name not in known:
            raise ValueError(f"{name!r} is not {noun}: {suggest(name, known) or 'write one of ' + ', '.join(known)}")
        if name in pairs:
            raise ValueError(f"{name} is given twice: write it once")
        pairs[name] = number
    return pairs


def parse_owner_limits(value: Any) -> Any:
    """Return limits from `NAME=NUMBER` separated by commas; a name without a number has none."""
    if not isinstance(value, str):
        return value
    limits = {name: number for name, number in _parse_pairs(value, OWNER_LIMITS, "a limit of owners").items() if number}
    for name, number in limits.items():
        if not re.fullmatch("[0-9]{1,18}", number) or int(number) == 0:
            raise ValueError(f"write {name}=NUMBER with a whole number above 0, or {name}= for no limit")
    return {name: int(number) for name, number in limits.items()}


def parse_retention_days(value: Any) -> Any:
    """Return days from `NAME=DAYS` separated by commas; a name that is not given has its default."""
    if not isinstance(value, str):
        return {**RETENTION_DAYS, **value}
    days = _parse_pairs(value, RETENTION_DAYS, "kept for a number of days")
    for name, number in days.items():
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", number):
            raise ValueError(f"write {name}=DAYS with a number of days, for example {name}=30, or {name}=0 for ever")
    return {**RETENTION_DAYS, **{name: float(number) for name, number in days.items()}}


def _listen_address(value: str) -> str:
    if value != "off" and not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[1-9][0-9]{0,4}", value):
        raise ValueError("write HOST:PORT, for example 127.0.0.1:9464, or off")
    return value


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("write a URL that starts with https:// (or http:// on a private network)")
    return value.rstrip("/")


def is_same_place(url: str, other: str) -> bool:
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
            valid = port.isascii() and port.isdigit() and 0 < int(port) < 65536
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"{entry!r} is not ADDRESS:PORT; write for example 127.0.0.1:8081")
    return value


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], _in_case_of(str.upper)]
LogFormat = Annotated[Literal["json", "console"], _in_case_of(str.lower)]
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
