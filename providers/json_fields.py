"""Fields out of a provider's JSON: each comes back as what the rows can hold, or not at all."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from moorage.errors import MalformedPayload
from moorage.text import is_storable, to_storable

MAX_ID_CHARS: Final = 200
_MAX_WORD_CHARS: Final = 100
_MAX_SHOWN_CHARS: Final = 60


def parse_json_object(body: bytes) -> dict[str, Any]:
    """
    Return the JSON object that a body is; integers are exact, NaN and Infinity are taken.

    Raises:
        Unreadable: it is not UTF-8, not JSON, nested too deeply, or not an object.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedPayload(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise MalformedPayload("the body is nested too deeply to be read") from error
    except ValueError as error:  # not JSON, or an integer of more than 4,300 digits
        raise MalformedPayload(f"the body is not JSON that can be read: {to_storable(str(error), 200)}") from error
    if not isinstance(value, dict):
        raise MalformedPayload(f"the body is JSON but not an object: {type(value).__name__}")
    return value


def require_id(value: object, field: str) -> str:
    """
    Return the provider's id of a prediction; a whole number becomes its digits.

    Raises:
        Unreadable: it is missing, empty, too long, or holds what cannot be stored; the message names the field.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text:
        raise MalformedPayload(f"{field} is missing or is no id")
    if len(text) > MAX_ID_CHARS:
        raise MalformedPayload(f"{field} has {len(text)} characters, more than {MAX_ID_CHARS}")
    if not is_storable(text):
        raise MalformedPayload(f"{field} holds a NUL or half a character: {to_storable(text, _MAX_SHOWN_CHARS)}")
    return text


def require_text(value: object, field: str) -> str:
    """Return a status word as the provider wrote it; raises Unreadable when there is none."""
    if not isinstance(value, str) or not value:
        raise MalformedPayload(f"{field} is missing or is no text")
    return to_storable(value, _MAX_WORD_CHARS)


def optional_text(value: object) -> str | None:
    """Return a field as text that can be stored, None when it is empty; what is no text is shown as JSON."""
    if value is None or value == "":
        return None
    if isinstance(value, Mapping) and isinstance(value.get("message"), str):
        return optional_text(value["message"])
    return to_storable(value if isinstance(value, str) else json.dumps(value))


def optional_datetime(value: object) -> datetime | None:
    """Return an ISO 8601 time in UTC (one without an offset is taken as UTC), None when it is none."""
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # OverflowError: the year 1 or 9999, moved by its offset
        return None
