"""
The notify step: send the application a webhook about an ended job, signed as in Standard Webhooks 1.0.

Delivery is at least once: a worker that dies between the response and its record sends the same `webhook-id` again.
The body is built when it is sent, so that a delayed notification reports the current state.
"""

import functools
import json
import time
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import requests
import urllib3
from urllib3.util import parse_url

from db import jobs, notifications, renders
from db.connection import Connection, Row
from db.notifications import Notification
from egress.guard import EgressGuard
from egress.sockets import call_while_waiting
from media.limits import Limits
from moorage import logs
from moorage.certificates import describe_cause
from moorage.errors import NotificationFailed, NotificationRefused
from moorage.failpoints import failpoint
from moorage.model import Lease, Wake
from moorage.retry_policy import parse_retry_after
from moorage.settings import Settings
from moorage.text import escape_control_chars
from providers import webhook_signing
from storage import urls
from tasks.step import Deps, LeaseGuard, commit_step

TIMEOUT_SECONDS: Final = 15.0
EXCERPT_BYTES: Final = 200
_GONE: Final = 410
_JOB: Final = ("owner", "state", "category", "reason", "project_id", "scene", "metadata", "reopened")
_VARIANT: Final = ("idx", "is_cover", "is_placeholder", "media", "content_type", "bytes", "width_px", "height_px")
_ERROR: Final = ("subject", "type", "message", "idx", "path", "retryable")

log = logs.get_logger(__name__)


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """
    Send one notification and record that the application accepted it; returns no wakes.

    Raises:
        NotificationFailed: no response within 15 s, or not 2xx.
        NotificationRefused: the endpoint returned 410, or MOORAGE_NOTIFY_URL is not set any more.
    """
    loaded = deps.database.run(lambda conn: _build_body(conn, deps, lease.row_id))
    if loaded is None:
        return []
    notification, body = loaded
    guard.ensure_held()
    failpoint("notify.before_request")
    _send(deps, notification, body, guard)
    failpoint("notify.after_answer")
    commit_step(deps, lease, guard, lambda conn: notifications.end_sent(conn, lease), point="notify")
    ids = {"notification_id": str(notification.id), "job_id": str(notification.job_id)}
    log.info("notification.sent", **ids, type=notification.type)
    return []


# --- body ---------------------------------------------------------------------------------------------------------


def _build_body(conn: Connection, deps: Deps, notification_id: UUID) -> tuple[Notification, bytes] | None:
    notification = notifications.get(conn, notification_id)
    job = jobs.get_with_render(conn, notification.job_id) if notification else None
    if notification is None or job is None:
        return None
    is_published = job["render_id"] is not None and job["deleted_at"] is None
    variants = renders.list_variants(conn, notification.job_id)
    errors = jobs.list_errors(conn, notification.job_id)
    data = {
        "job_id": notification.job_id,
        **{name: job[name] for name in _JOB},
        "render_id": job["render_id"] if is_published else None,
        "variants": [_build_variant(row, deps.asset_base) for row in variants],
        "errors": [{name: row[name] for name in _ERROR} for row in errors],
        "sequence": notification.sequence,
    }
    event = {"type": notification.type, "timestamp": notification.created_at, "data": data}
    return notification, json.dumps(event, default=_to_text, separators=(",", ":")).encode()


def _build_variant(row: Row, base: str) -> dict[str, Any]:
    thumb = row["thumb_key"]
    return {
        **{name: row[name] for name in _VARIANT},
        "url": urls.build_asset_url(base, row["key"]),
        "thumb_url": urls.build_asset_url(base, thumb) if thumb else None,
    }


def _to_text(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


# --- request ------------------------------------------------------------------------------------------------------


def load_signing_secrets(settings: Settings) -> tuple[bytes, ...]:
    return webhook_signing.decode_standard_secrets(settings.notify_secret, "MOORAGE_NOTIFY_SECRET")


def build_headers(notification_id: UUID, body: bytes, timestamp: int, secrets: tuple[bytes, ...]) -> dict[str, str]:
    """Return the headers of a notification, with one signature per secret; `timestamp`: seconds since 1970."""
    headers = {
        "Content-Type": "application/json",
        "Connection": "close",  # notifications are rare: the server would close an idle connection before the next
        "webhook-id": str(notification_id),
        "webhook-timestamp": str(timestamp),
    }
    if secrets:
        signature = webhook_signing.sign_standard_v1(str(notification_id), timestamp, body, secrets=secrets)
        headers["webhook-signature"] = signature
    return headers


class _OpenEgress(EgressGuard):
    """Allows every address: the one URL is set by the operator, and applications often have a private address."""

    def refusal_reason(self, ip: str, port: int) -> str | None:  # noqa: ARG002 (the signature is the guard's)
        return None


@functools.lru_cache(maxsize=1)
def _session(limits: Limits) -> requests.Session:
    return _OpenEgress().new_session(limits)


def _send(deps: Deps, notification: Notification, body: bytes, guard: LeaseGuard) -> None:
    url = notification.url or next(iter(deps.settings.notify_urls), None)
    if url is None or url not in deps.settings.notify_urls:
        raise NotificationRefused("MOORAGE_NOTIFY_URL is not set, or its URL for this job was removed")
    headers = build_headers(notification.id, body, int(time.time()), load_signing_secrets(deps.settings))
    end = time.monotonic() + TIMEOUT_SECONDS

    def check() -> None:  # the timeout of requests is that of each read
        guard.check()
        if time.monotonic() >= end:
            raise NotificationFailed(f"the application did not answer within {TIMEOUT_SECONDS:g} s")

    try:
        with (
            call_while_waiting(check),
            _session(deps.limits).post(
                url, data=body, headers=headers, timeout=TIMEOUT_SECONDS, allow_redirects=False, stream=True
            ) as response,
        ):
            _check_status(response)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        host = parse_url(url).host
        raise NotificationFailed(f"the application at {host} did not answer: {describe_cause(error)}") from error


def _read_excerpt(response: requests.Response) -> str:
    """Return ": " and the beginning of an error's body, as one line; the body of a success is never read."""
    try:
        data: bytes = response.raw.read1(EXCERPT_BYTES, decode_content=True)
    except (urllib3.exceptions.HTTPError, OSError):
        return ""
    text = escape_control_chars(" ".join(data.decode("utf-8", "replace").split()))
    return f": {text}" if text else ""


def _check_status(response: requests.Response) -> None:
    """Return for 2xx only."""
    status = response.status_code
    if 200 <= status < 300:
        return
    facts = {"status": status}
    if status == _GONE:
        raise NotificationRefused("endpoint returned 410 Gone; notification disabled", facts=facts)
    hint = "; redirects are not followed: correct MOORAGE_NOTIFY_URL" if 300 <= status < 400 else ""
    seconds = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    reason = f"the application at {parse_url(response.url).host} returned {status}{hint}{_read_excerpt(response)}"
    raise NotificationFailed(reason, facts=facts, retry_after=seconds)
