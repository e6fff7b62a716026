"""Checks of PostgreSQL, the broker, the store, providers and settings."""

import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import redis
import requests

import providers
from db import migrate, write_probe
from db.connection import Connection, connect, current_time
from moorage.errors import ConfigError, MoorageError
from moorage.settings import Settings
from storage import s3
from storage.buckets import NOT_PUBLIC
from storage.proofs import DESCRIPTIONS
from worker import broker_transports, inspect_cluster, schedule
from worker.broker_errors import BROKER_ERRORS, explain


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check; `advice` is empty if no action is needed. Contains no secrets."""

    level: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


ok, warn, fail = (partial(CheckResult, level) for level in ("ok", "warn", "fail"))

CLOCK_SECONDS: Final = 5.0  # signatures tolerate 300; synchronised clocks differ by less than one
API_SECONDS: Final = 5.0
BROKER_SECONDS: Final = 3
OBJECT: Final = b"moorage doctor checks that this object can be written and who can read it.\n"
TOKEN_CHARS: Final = 32


def check_postgres(settings: Settings) -> Iterator[CheckResult]:
    try:
        conn = connect(settings.database_url.get_secret_value(), name="moorage-doctor")
    except MoorageError as error:
        yield fail(str(error), "start it, or correct DATABASE_URL")
        return
    try:
        number = conn.info.server_version
        name = f"PostgreSQL {number // 10000}.{number % 10000} at {conn.info.host}:{conn.info.port}"
        yield ok(name) if number >= 160000 else fail(name, "upgrade it to 16 or newer")
        yield from _check_schema(conn)
        yield _check_writes(conn)
    except psycopg.Error as error:
        yield fail(f"PostgreSQL refuses: {type(error).__name__}", "see its log; moorage's user must own the tables")
    finally:
        conn.close()


def _check_schema(conn: Connection) -> Iterator[CheckResult]:
    version = migrate.get_schema_version(conn)
    if version < migrate.SCHEMA_VERSION:
        yield fail(f"database schema {version} is older than {migrate.SCHEMA_VERSION}", "run moorage migrate")
        return
    yield ok(f"schema version {version}")
    offset = abs((datetime.now(UTC) - current_time(conn)).total_seconds())
    if offset > CLOCK_SECONDS:
        advice = "synchronise both clocks (NTP): signatures and URLs expire"
        yield fail(f"the clocks of this machine and of PostgreSQL differ by {offset:.0f} s", advice)
    else:
        yield ok("the clocks of this machine and of PostgreSQL agree")


def _check_writes(conn: Connection) -> CheckResult:
    """Write as a webhook does, and roll back: a server that answers queries may refuse every webhook."""
    try:
        conn.execute(write_probe.WRITE_PROBE)
    except psycopg.Error as error:
        problem, _, advice = write_probe.describe_refusal(error).partition(": ")
        return fail(f"webhooks cannot be recorded: {problem}", advice)
    return ok("webhooks can be recorded (written and rolled back)")


def check_broker(settings: Settings) -> Iterator[CheckResult]:
    """Check Redis or Valkey, and write to it as a worker does. Of RabbitMQ only the connection."""
    url = settings.broker_url.get_secret_value()
    if url.startswith("memory://"):
        return
    try:
        if url.startswith(("amqp://", "amqps://")):
            with broker_transports.open_connection(url, seconds=BROKER_SECONDS):
                yield ok("the broker answers")
            return
        with broker_transports.open_client(url, seconds=BROKER_SECONDS) as client:
            yield from _check_server(client)
            inspect_cluster.write_probe(client)
            yield ok("the broker accepts messages")
    except BROKER_ERRORS as error:
        finding = explain(error)
        yield fail(finding.what, finding.advice)


def _check_server(client: redis.Redis) -> Iterator[CheckResult]:
    info: Any = client.info("server")
    yield ok(f"broker {info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}")
    memory: Any = client.info("memory")
    persistence: Any = client.info("persistence")
    if (policy := memory.get("maxmemory_policy", "noeviction")) == "noeviction":
        yield ok("the broker evicts no messages (noeviction)")
    else:
        yield fail(f"the broker may evict messages ({policy})", "set maxmemory-policy noeviction")
    if persistence.get("aof_enabled"):
        yield ok("the broker's messages survive a restart (appendonly)")
    else:
        yield warn("the broker loses its messages in a restart", "set appendonly yes, or accept a delay of seconds")


def check_buckets(settings: Settings) -> Iterator[CheckResult]:
    storage = s3.ObjectStore(settings)
    try:
        storage.check_connection()
        storage.probe(again=True)
    except MoorageError as error:
        hint = "a worker creates it at start" if settings.manage_buckets else "create it"
        yield fail(f"storage: {error}", f"correct AWS_ENDPOINT_URL_S3 and its keys; if the bucket is missing, {hint}")
        return
    origin = "found by a probe" if settings.s3_checksums == "auto" else f"S3_CHECKSUMS={settings.s3_checksums}"
    yield ok(f"storage: {DESCRIPTIONS[storage.proof]} ({origin})")
    yield from _check_bucket(storage, settings, storage.public_bucket)
    yield from _check_bucket(storage, settings, storage.private_bucket)


def _check_bucket(storage: s3.ObjectStore, settings: Settings, bucket: str) -> Iterator[CheckResult]:
    key = f"doctor/{uuid4()}.txt"
    digest = hashlib.sha256(OBJECT).hexdigest()
    try:
        storage.put(bucket, key, OBJECT, size=len(OBJECT), sha256=digest, content_type="text/plain")
        try:
            yield ok(f"bucket {bucket} can be written")
            if bucket == storage.private_bucket:
                yield _check_private(storage, bucket, key)
            elif settings.assets == "redirect":
                yield _check_public(storage, bucket, key)
            else:
                yield _check_signed(storage, bucket, key, settings.assets)
        finally:
            storage.delete(bucket, key)
    except MoorageError as error:
        advice = "moorage's keys need s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket"
        if settings.s3_checksums != "auto":
            advice += "; or the store does not support the checksum: set S3_CHECKSUMS=auto"
        yield fail(f"bucket {bucket}: {error}", advice)


def _check_public(storage: s3.ObjectStore, bucket: str, key: str) -> CheckResult:
    url = storage.build_asset_url(key)
    status = _get_anonymously(url)
    if status == 200:
        return ok(f"anyone can read bucket {bucket} at {url.removesuffix(key)}")
    advice = "allow s3:GetObject for everyone, correct ASSET_BASE_URL, or set MOORAGE_ASSETS=signed"
    return fail(f"{url} returns {status} to an anonymous reader", advice)


def _check_signed(storage: s3.ObjectStore, bucket: str, key: str, assets: str) -> CheckResult:
    """Check that a signed URL works at the address that readers use; the API streams from the one that was checked."""
    if assets == "stream":
        return ok(f"files of bucket {bucket} are sent by the API: it need not be public")
    url = storage.presign_get(bucket, key, 60)
    status = _get_anonymously(url)
    if status == 200:
        return ok(f"files of bucket {bucket} are read by signed URLs: it need not be public")
    return fail(f"the signed URL {url.partition('?')[0]} returns {status}", "correct S3_PUBLIC_ENDPOINT_URL")


def _check_private(storage: s3.ObjectStore, bucket: str, key: str) -> CheckResult:
    url = storage.presign_get(bucket, key, 60).partition("?")[0]
    status = _get_anonymously(url)
    if status in NOT_PUBLIC:
        return ok(f"anonymous readers cannot read bucket {bucket}")
    if status == 200:
        return fail(f"anyone can read the private bucket {bucket}", "remove the policy or ACL that allows it")
    return warn(f"{url} returns {status} to an anonymous reader", "make sure that only moorage's keys can read it")


def _get_anonymously(url: str) -> int | str:
    try:
        with requests.get(url, timeout=API_SECONDS, allow_redirects=True, stream=True) as response:
            return response.status_code
    except requests.RequestException as error:
        return type(error).__name__


def check_provider_settings(settings: Settings) -> Iterator[CheckResult]:
    try:
        loaded = providers.load(settings)
    except ConfigError as error:
        yield fail(str(error), "correct it")
        return
    for name, provider in loaded.items():
        secret = provider.webhook_setting
        if name in settings.allow_unsigned:
            yield warn(f"{name}: accepts unsigned webhooks", f"set {secret}, unset MOORAGE_ALLOW_UNSIGNED")
        elif provider.has_secret:
            yield ok(f"{name}: webhooks are verified ({secret})")
        elif provider.is_enabled or not provider.sends_webhooks:
            yield ok(f"{name}: is polled; what its webhooks say is not believed")
        elif not (provider.is_synchronous and provider.can_submit):  # then its responses contain the files
            yield warn(f"{name}: no webhook secret, its webhooks are refused", f"set {secret} if you use {name}")
        if provider.can_submit:
            yield ok(f"{name}: accepts submissions, at most {provider.max_in_flight} in flight")
    for url in settings.notify_urls:
        count = len(settings.notify_secret)
        yield ok(f"notifications go to {url.partition('?')[0]}, signed with {count} secrets")
    if settings.maintenance_cron.strip().lower() == schedule.OFF:
        yield warn(
            "MOORAGE_MAINTENANCE_CRON=off: nothing expires, no storage use is counted", "unset it if not restoring"
        )
    yield _check_api_token(settings)


def _check_api_token(settings: Settings) -> CheckResult:
    length = len(settings.api_token.get_secret_value()) if settings.api_token else 0
    advice = "set MOORAGE_API_TOKEN to the output of `openssl rand -hex 32`"
    if not length:
        return warn("no API token: predictions cannot be registered", advice)
    if length < TOKEN_CHARS:
        return warn(f"the API token has only {length} characters", advice)
    return ok(f"an API token of {length} characters is set")


def check_replicate_token(settings: Settings) -> Iterator[CheckResult]:
    if settings.replicate_api_token is None:
        if settings.replicate_webhook_secret:
            yield warn("no REPLICATE_API_TOKEN: predictions with lost webhooks cannot be polled", "set it")
        return
    headers = {"Authorization": f"Bearer {settings.replicate_api_token.get_secret_value()}"}
    url = settings.replicate_api_url
    try:
        response = requests.get(f"{url}/v1/account", headers=headers, timeout=API_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        yield fail(f"{url} does not answer: {type(error).__name__}", "check outbound network access")
        return
    status = response.status_code
    if status in (401, 403):
        yield fail(f"Replicate refuses the token ({status})", "set REPLICATE_API_TOKEN to a valid one")
    elif status == 200:
        yield ok("Replicate accepts the token")
    elif status == 404:  # a compatible API without accounts
        yield warn(f"{url} has no accounts: the token is not checked", "no action, if this is not Replicate itself")
    else:
        yield warn(f"{url} returns {status}", "check again later")


def check_public_url(settings: Settings) -> Iterator[CheckResult]:
    parts = urlsplit(settings.public_url)
    level = fail if settings.env == "production" else warn
    if _is_local(parts.hostname or ""):
        yield level(f"PUBLIC_URL is {settings.public_url}: providers cannot reach it", "set the public address")
    elif parts.scheme != "https":
        advice = "terminate TLS before the receiver: Replicate requires it"
        yield level(f"PUBLIC_URL {settings.public_url} is not https", advice)
    else:
        yield ok(f"PUBLIC_URL is {settings.public_url}")


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("", "localhost") or host.endswith((".localhost", ".local", ".internal"))
    return not address.is_global
