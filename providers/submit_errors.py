"""What an answer to an order that is no 2xx amounts to: come again, pay, mend the input, or nobody knows; pure."""

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
    ProviderBusy,
    ProviderRefused,
    SubmitUncertain,
)
from moorage.retry_after import MAX_RETRY_AFTER_SECONDS, parse_retry_after
from moorage.text import to_storable
from providers import json_fields

_MAX_REASON_CHARS: Final = 300
_MIN_HIDDEN_CHARS: Final = 8  # shorter ones would blank words
# OpenAI: a spent quota is a 429 with a code of its own.
_BILLING_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
# fal: 403 "User is locked. Reason: Exhausted balance. Top up your balance ..." (github.com/fal-ai/fal/issues/1147).
_BILLING_WORDS: Final = re.compile(r"user is locked|exhausted balance", re.IGNORECASE)
# Replicate: "Request was throttled. Your rate limit resets in ~30s."
_RESETS_IN: Final = re.compile(r"resets in ~?([0-9]{1,6}(?:\.[0-9]{1,6})?) ?s")


def classify_response(
    name: str, status: int, headers: Message, body: bytes, *, secrets: Iterable[str] = ()
) -> MoorageError:
    """
    Return what to raise for an answer.

    A 5xx may come from a proxy whose server went on, a redirect from one that did: neither says that nothing was made.
    A 408 neither, since some write it when their own work took too long.

    Args:
        headers: found by name in any case.
        body: as far as it was read.
        hidden: blanked in the message.
    """
    said = _fields(body)
    code, reason = _code(said), _hide(_reason(said), secrets)
    facts = {"status": status} | ({"code": code} if code else {})
    text = f"{name} answered an order with {status}" + (f": {reason}" if reason else "")
    if status == 402 or code in _BILLING_CODES or (status == 403 and _BILLING_WORDS.search(reason)):
        return BillingRefused(text, facts=facts)
    if status == 429:
        return ProviderBusy(text, facts=facts, retry_after=_wait(headers, reason))
    if status == 425:
        return NotSubmitted(text, facts=facts)
    if status == 401:
        return ProviderRefused(f"{text} (the API token is not valid)", facts=facts)
    if 400 <= status < 500 and status != 408:
        return ProviderRefused(text, facts=facts)
    return SubmitUncertain(text, facts=facts, retry_after=_wait(headers, reason))


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return json_fields.parse_json_object(body)
    except MalformedPayload:  # a page of a proxy's: the status alone must do
        return {}


def _code(said: Mapping[str, Any]) -> str | None:
    error = said.get("error")
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return to_storable(code, 100) if isinstance(code, str) else None


def _reason(said: Mapping[str, Any]) -> str:
    """Return the provider's words: OpenAI's `error.message`, Replicate's and fal's `detail`, else what is there."""
    for field in ("error", "detail", "message", "title"):
        value = said.get(field)
        text = _of_list(value) if isinstance(value, list) else json_fields.optional_text(value)
        if text:
            return to_storable(text, _MAX_REASON_CHARS)
    return ""


def _of_list(problems: Sequence[Any]) -> str:
    """Return fal's list of problems as text: `body.prompt: field required; ...`."""
    told = []
    for one in problems[:5]:
        if isinstance(one, dict) and isinstance(one.get("msg"), str):
            loc = one.get("loc")
            where = ".".join(str(step) for step in loc[:10]) if isinstance(loc, list) else ""
            told.append(f"{where}: {one['msg']}" if where else one["msg"])
        else:
            told.append(json_fields.optional_text(one) or "")
    return "; ".join(part for part in told if part)


def _hide(text: str, hidden: Iterable[str]) -> str:
    for secret in hidden:
        if len(secret) >= _MIN_HIDDEN_CHARS:
            text = text.replace(secret, "[...]")
    return text


def _wait(headers: Message, reason: str) -> float | None:
    """Return the seconds to wait: OpenAI says them in milliseconds too, Replicate only in words."""
    milliseconds = headers.get("retry-after-ms")
    if milliseconds and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", milliseconds.strip()):
        return min(float(milliseconds) / 1000, MAX_RETRY_AFTER_SECONDS)
    asked = parse_retry_after(headers.get("Retry-After"), datetime.now(UTC))
    if asked is not None:
        return asked
    told = _RESETS_IN.search(reason)
    return min(float(told[1]), MAX_RETRY_AFTER_SECONDS) if told else None
