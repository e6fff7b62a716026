"""Error types for the non-2xx responses to a submission; pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.message import Message
from typing import Any, Final

from moorage.errors import (
    BillingRefused,
    MalformedPayload,
    MoorageError,
    NotSubmitted,
    ProviderRefused,
    RateLimited,
    SubmitUncertain,
)
from moorage.retry_policy import MAX_RETRY_AFTER_SECONDS, parse_retry_after
from moorage.text import to_storable
from providers import json_fields

_MAX_REASON_CHARS: Final = 300
_MIN_HIDDEN_CHARS: Final = 8  # a shorter one could occur in ordinary text
# OpenAI returns 429 with one of these codes for an exhausted quota.
_BILLING_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
# fal: 403 "User is locked. Reason: Exhausted balance. Top up your balance ..." (github.com/fal-ai/fal/issues/1147).
_BILLING_WORDS: Final = re.compile(r"user is locked|exhausted balance", re.IGNORECASE)
# Replicate: "Request was throttled. Your rate limit resets in ~30s."
_RESETS_IN: Final = re.compile(r"resets in ~?([0-9]{1,6}(?:\.[0-9]{1,6})?) ?s")


def classify_submit_response(
    name: str, status: int, headers: Message, body: bytes, *, secrets: Iterable[str] = ()
) -> MoorageError:
    """
    Return the error for a response.

    A 5xx may come from a proxy whose server continues, a redirect from one that did; some servers return 408 when their
    own work took too long. All three leave the outcome uncertain. The `secrets` are removed from the message.
    """
    fields = _parse_fields(body)
    code, reason = _get_code(fields), _redact(_get_reason(fields), secrets)
    facts = {"status": status} | ({"code": code} if code else {})
    message = f"{name} returned {status}" + (f": {reason}" if reason else "")
    if status == 401:
        return BillingRefused(f"{message} (the API token is not valid)", facts=facts)
    if status == 402 or code in _BILLING_CODES or (status == 403 and _BILLING_WORDS.search(reason)):
        return BillingRefused(message, facts=facts)
    if status == 429:
        return RateLimited(message, facts=facts, retry_after=_parse_wait_seconds(headers, fields, reason))
    if status == 425:
        return NotSubmitted(message, facts=facts)
    if 400 <= status < 500 and status != 408:
        return ProviderRefused(message, facts=facts)
    return SubmitUncertain(message, facts=facts, retry_after=_parse_wait_seconds(headers, fields, reason))


def _parse_fields(body: bytes) -> dict[str, Any]:
    try:
        return json_fields.parse_json_object(body)
    except MalformedPayload:  # a proxy's page: only the status is known
        return {}


def _get_code(fields: Mapping[str, Any]) -> str | None:
    error = fields.get("error")
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return to_storable(code, 100) if isinstance(code, str) else None


def _get_reason(fields: Mapping[str, Any]) -> str:
    """Return the reason: OpenAI's `error.message`, Replicate's and fal's `detail`, else another known field."""
    for field in ("error", "detail", "message", "title"):
        value = fields.get(field)
        text = _join_problems(value) if isinstance(value, list) else json_fields.optional_text(value)
        if text:
            return to_storable(text, _MAX_REASON_CHARS)
    return ""


def _join_problems(problems: Sequence[Any]) -> str:
    """Return fal's list of problems as text: `body.prompt: field required; ...`."""
    messages = []
    for problem in problems[:5]:
        if isinstance(problem, dict) and isinstance(problem.get("msg"), str):
            loc = problem.get("loc")
            location = ".".join(str(segment) for segment in loc[:10]) if isinstance(loc, list) else ""
            messages.append(f"{location}: {problem['msg']}" if location else problem["msg"])
        else:
            messages.append(json_fields.optional_text(problem) or "")
    return "; ".join(part for part in messages if part)


def _redact(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if len(secret) >= _MIN_HIDDEN_CHARS:
            text = text.replace(secret, "[...]")
    return text


def _parse_wait_seconds(headers: Message, fields: Mapping[str, Any], reason: str) -> float | None:
    """Return the delay in seconds: OpenAI also sends milliseconds, BFL a field, Replicate only a sentence."""
    milliseconds = headers.get("retry-after-ms")
    if milliseconds and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", milliseconds.strip()):
        return min(float(milliseconds) / 1000, MAX_RETRY_AFTER_SECONDS)
    stated = headers.get("Retry-After") or fields.get("retry_after")
    seconds = parse_retry_after(stated if stated is None else str(stated), datetime.now(UTC))
    if seconds is not None:
        return seconds
    match = _RESETS_IN.search(reason)
    return min(float(match[1]), MAX_RETRY_AFTER_SECONDS) if match else None
