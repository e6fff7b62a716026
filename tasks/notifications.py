"""
The step of one notice: tell the application that a job has ended, by a webhook signed as Standard Webhooks 1.0.

At least once: a worker that dies between the answer and its record sends the same `webhook-id` again. What is told is
read when it is sent, so that a notice that waited a day does not tell of yesterday.
"""

import functools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import requests
import urllib3

from db import jobs, notifications, renders
from db.connection import Connection, Row
from db.notifications import Notification
from egress.session import EgressGuard
from egress.sockets import call_while_waiting
from media.limits import Limits
from moorage import logs
from moorage.errors import NotificationFailed, NotificationRefused
from moorage.failpoints import failpoint
from moorage.model import Lease, Wake
from moorage.retry_after import parse_retry_after
from moorage.settings import Settings
from providers import signatures
from storage import urls
from tasks.step import Deps, LeaseGuard, commit_step

TOTAL_SECONDS: Final = 15.0
_GONE: Final = 410
_JOB: Final = ("owner", "state", "category", "reason", "project_id", "scene", "reopened")
_VARIANT: Final = ("idx", "is_cover", "is_placeholder", "media", "content_type", "bytes", "width_px", "height_px")
_ERROR: Final = ("subject", "type", "message", "idx", "path", "retryable")

log = logs.get_logger(__name__)


def run(deps: Deps, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    """
    Send one notice and record that the application took it; returns no wakes.

    Raises:
        NotifyFailed: no answer within 15 s, or one that is not 2xx.
        NotifyRefused: the application wants no more of it (410), or there is no address any more.
        LeaseLost: another worker owns the notice.
    """
    found = deps.database.run(lambda conn: _read(conn, deps, lease.row_id))
    if found is None:
        return []
    notice, body = found
    pulse.before_write()
    failpoint("notify.before_request")
    _send(deps, notice, body, pulse)
    failpoint("notify.after_answer")
    commit_step(deps, lease, pulse, lambda conn: notifications.end_sent(conn, lease))
    failpoint("notify.after_record")
    log.info("notice.sent", notice_id=str(notice.id), job_id=str(notice.job_id), type=notice.type)
    return []


# --- what is told -------------------------------------------------------------------------------------------------


def _read(conn: Connection, deps: Deps, notice_id: UUID) -> tuple[Notification, bytes] | None:
    notice = notifications.get(conn, notice_id)
    row = jobs.get_with_render(conn, notice.job_id) if notice else None
    if notice is None or row is None:
        return None
    is_published = row["render_id"] is not None and row["deleted_at"] is None
    data = {
        "job_id": notice.job_id,
        **{name: row[name] for name in _JOB},
        "render_id": row["render_id"] if is_published else None,
        "variants": [_variant(found, deps.asset_base) for found in renders.list_variants(conn, notice.job_id)],
        "errors": [{name: found[name] for name in _ERROR} for found in jobs.list_errors(conn, notice.job_id)],
        "sequence": notice.sequence,
    }
    event = {"type": notice.type, "timestamp": notice.created_at, "data": data}
    return notice, json.dumps(event, default=_text, separators=(",", ":")).encode()


def _variant(row: Row, base: str) -> dict[str, Any]:
    thumb = row["thumb_key"]
    return {
        **{name: row[name] for name in _VARIANT},
        "url": urls.build_asset_url(base, row["key"]),
        "thumb_url": urls.build_asset_url(base, thumb) if thumb else None,
    }


def _text(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


# --- the request --------------------------------------------------------------------------------------------------


def load_signing_secrets(settings: Settings) -> tuple[bytes, ...]:
    """Return the secrets that notices are signed with; raises ConfigError when one of them is none."""
    return signatures.decode_standard_secrets(settings.notify_secret, "MOORAGE_NOTIFY_SECRET")


def build_headers(notice_id: UUID, body: bytes, timestamp: int, keys: tuple[bytes, ...]) -> dict[str, str]:
    """Return the headers of a notice: the same id at each try, a signature by each key; `at`: seconds since 1970."""
    signed = (
        {"webhook-signature": signatures.sign_standard_v1(str(notice_id), timestamp, body, secrets=keys)}
        if keys
        else {}
    )
    return {
        "Content-Type": "application/json",
        "Connection": "close",  # notices are rare: a kept connection would be found dead by the next
        "webhook-id": str(notice_id),
        "webhook-timestamp": str(timestamp),
        **signed,
    }


class _Unguarded(EgressGuard):
    """The way to the one address that the operator wrote down: it may be private, as applications often are."""

    def refusal_reason(self, ip: str, port: int) -> str | None:  # noqa: ARG002 (the signature is the guard's)
        return None


@functools.lru_cache(maxsize=1)
def _session(limits: Limits) -> requests.Session:
    return _Unguarded().new_session(limits)


def _send(deps: Deps, notice: Notification, body: bytes, pulse: LeaseGuard) -> None:
    url = deps.settings.notify_url
    if url is None:
        raise NotificationRefused("MOORAGE_NOTIFY_URL is not set any more: there is nobody to tell")
    sent = build_headers(notice.id, body, int(time.time()), load_signing_secrets(deps.settings))
    try:
        with (
            call_while_waiting(_until(time.monotonic() + TOTAL_SECONDS, pulse)),
            _session(deps.limits).post(
                url, data=body, headers=sent, timeout=TOTAL_SECONDS, allow_redirects=False, stream=True
            ) as answer,
        ):
            _judge(answer.status_code, answer.headers.get("Retry-After"))
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        cause = f"{type(error).__name__}: {error}"[:300]
        raise NotificationFailed(f"the application did not answer: {cause}") from error


def _until(end: float, pulse: LeaseGuard) -> Callable[[], None]:
    """Return what is called while an answer is waited for, byte by byte if need be."""

    def look() -> None:
        pulse()
        if time.monotonic() >= end:
            raise NotificationFailed(f"the application did not answer within {TOTAL_SECONDS:g} s")

    return look


def _judge(status: int, wait: str | None) -> None:
    """Return for 2xx alone; the body of an answer is never read."""
    if 200 <= status < 300:
        return
    facts = {"status": status}
    if status == _GONE:
        raise NotificationRefused("the application answered 410: it wants to hear no more of this", facts=facts)
    hint = ": redirects are not followed, write the right address" if 300 <= status < 400 else ""
    seconds = parse_retry_after(wait, datetime.now(UTC))
    raise NotificationFailed(f"the application answered {status}{hint}", facts=facts, retry_after=seconds)
