"""The doctor's checks of PostgreSQL, broker and settings; those of storage are in storage_checks.py."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import psycopg
import redis
import requests

import providers
from db import migrate
from db.connection import Connection, connect, current_time
from moorage.errors import ConfigError, MoorageError
from moorage.settings import Settings


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How something stands; `advice` is empty where nothing is to be done. No secret is in either."""

    level: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


def ok(what: str) -> CheckResult:
    """Return that all is well."""
    return CheckResult("ok", what)


def warn(what: str, advice: str) -> CheckResult:
    """Return that it works, but not as well as it should."""
    return CheckResult("warn", what, advice)


def fail(what: str, advice: str) -> CheckResult:
    """Return that it cannot work like this."""
    return CheckResult("fail", what, advice)


CLOCK_SECONDS: Final = 5.0  # signatures bear 300; a computer that keeps time is within one
BROKER_SECONDS: Final = 3.0
API_SECONDS: Final = 5.0
TOKEN_CHARS: Final = 32


def check_postgres(settings: Settings) -> Iterator[CheckResult]:
    """Check that PostgreSQL answers, is new enough, has our schema and the same time."""
    try:
        conn = connect(settings.database_url.get_secret_value(), name="moorage-doctor")
    except MoorageError as error:
        yield fail(str(error), "start it, or correct DATABASE_URL")
        return
    try:
        yield _version(conn)
        yield from _schema(conn)
    except psycopg.Error as error:
        yield fail(f"PostgreSQL refuses: {type(error).__name__}", "see its log; our user must own its tables")
    finally:
        conn.close()


def _version(conn: Connection) -> CheckResult:
    number = conn.info.server_version
    name = f"PostgreSQL {number // 10000}.{number % 10000} at {conn.info.host}:{conn.info.port}"
    return ok(name) if number >= 160000 else fail(name, "16 or newer is needed: upgrade it")


def _schema(conn: Connection) -> Iterator[CheckResult]:
    version = migrate.get_schema_version(conn)
    if version < migrate.SCHEMA_VERSION:
        yield fail(f"database schema {version} is older than {migrate.SCHEMA_VERSION}", "run moorage migrate")
        return
    yield ok(f"schema version {version}")
    apart = abs((datetime.now(UTC) - current_time(conn)).total_seconds())
    if apart > CLOCK_SECONDS:
        yield fail(
            f"our clock and PostgreSQL's are {apart:.0f} s apart", "keep both by NTP: signatures and URLs expire"
        )
    else:
        yield ok("our clock and PostgreSQL's agree")


def check_broker(settings: Settings) -> Iterator[CheckResult]:
    """Check that a Redis or Valkey answers, throws nothing away and survives a restart. RabbitMQ is told by use."""
    url = settings.broker_url.get_secret_value()
    if not url.startswith(("redis://", "rediss://")):
        return
    client = redis.Redis.from_url(url, socket_timeout=BROKER_SECONDS, socket_connect_timeout=BROKER_SECONDS)
    where = urlsplit(url).hostname
    try:
        info: Any = client.info("server")
        yield ok(f"broker {info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}")
        memory: Any = client.info("memory")
        persistence: Any = client.info("persistence")
    except redis.RedisError as error:
        yield fail(
            f"the broker at {where} does not answer: {type(error).__name__}", "start it, or correct CELERY_BROKER_URL"
        )
        return
    finally:
        client.close()
    yield _eviction(str(memory.get("maxmemory_policy", "noeviction")))
    yield _persistence(bool(persistence.get("aof_enabled")))


def _eviction(policy: str) -> CheckResult:
    if policy == "noeviction":
        return ok("the broker evicts nothing (noeviction)")
    return fail(f"the broker may throw wakes away ({policy})", "set maxmemory-policy noeviction")


def _persistence(is_on: bool) -> CheckResult:
    if is_on:
        return ok("the broker keeps its messages over a restart (appendonly)")
    return warn(
        "the broker forgets its messages in a restart", "set appendonly yes; without it a restart costs seconds"
    )


def check_provider_settings(settings: Settings) -> Iterator[CheckResult]:
    """Check each provider's webhook secret and whether it takes orders, webhooks out, and our own API token."""
    try:
        loaded = providers.load(settings)
    except ConfigError as error:
        yield fail(str(error), "correct it")
        return
    for name, provider in loaded.items():
        secret = provider.webhook_setting
        if name in settings.allow_unsigned:
            yield warn(f"{name}: webhooks are taken unsigned", f"set {secret}, unset MOORAGE_ALLOW_UNSIGNED")
        elif provider.is_enabled:
            yield ok(f"{name}: a webhook secret is set and can be read")
        elif not (provider.is_synchronous and provider.can_submit):  # that one answers orders with the files themselves
            yield warn(f"{name}: no webhook secret, its webhooks are refused", f"set {secret} if you use {name}")
        if provider.can_submit:
            yield ok(f"{name}: takes orders, at most {provider.max_in_flight} at once")
    if settings.notify_url:
        count = len(settings.notify_secret)
        yield ok(f"applications are told at {settings.notify_url.partition('?')[0]}, signed with {count} secrets")
    yield _api_token(settings)


def _api_token(settings: Settings) -> CheckResult:
    length = len(settings.api_token.get_secret_value()) if settings.api_token else 0
    advice = "set MOORAGE_API_TOKEN to what `openssl rand -hex 32` prints"
    if not length:
        return warn("no API token: predictions cannot be registered", advice)
    if length < TOKEN_CHARS:
        return warn(f"the API token has only {length} characters", advice)
    return ok(f"an API token of {length} characters is set")


def check_replicate_token(settings: Settings) -> Iterator[CheckResult]:
    """Check that Replicate takes our token: one GET of the account it belongs to."""
    if settings.replicate_api_token is None:
        if settings.replicate_webhook_secret:
            yield warn("no REPLICATE_API_TOKEN: webhooks that never come cannot be asked for", "set it")
        return
    headers = {"Authorization": f"Bearer {settings.replicate_api_token.get_secret_value()}"}
    try:
        answer = requests.get(
            f"{settings.replicate_api_url}/v1/account", headers=headers, timeout=API_SECONDS, allow_redirects=False
        )
    except requests.RequestException as error:
        yield fail(f"{settings.replicate_api_url} does not answer: {type(error).__name__}", "is there a way out?")
        return
    yield _taken(answer.status_code, settings.replicate_api_url)


def _taken(status: int, url: str) -> CheckResult:
    if status in (401, 403):
        return fail(f"Replicate refuses our token ({status})", "set REPLICATE_API_TOKEN to a live one")
    if status == 200:
        return ok("Replicate takes our token")
    if status == 404:  # what answers like Replicate need not know accounts
        return warn(f"{url} knows no accounts: the token is untested", "nothing, if this is not Replicate itself")
    return warn(f"{url} answers {status} now", "look again later")


def check_public_url(settings: Settings) -> Iterator[CheckResult]:
    """Check that the address providers are given can be theirs."""
    parts = urlsplit(settings.public_url)
    level = fail if settings.env == "production" else warn
    if _is_local(parts.hostname or ""):
        yield level(
            f"PUBLIC_URL is {settings.public_url}: no provider reaches it", "set the address the outside reaches"
        )
    elif parts.scheme != "https":
        yield level(
            f"PUBLIC_URL {settings.public_url} is not https", "put TLS before the receiver: Replicate asks for it"
        )
    else:
        yield ok(f"PUBLIC_URL is {settings.public_url}")


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("", "localhost") or host.endswith((".localhost", ".local", ".internal"))
    return not address.is_global
