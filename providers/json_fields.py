"""Fields of a provider's JSON, converted to storable values or rejected."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from moorage.errors import MalformedPayload, MoorageError
from moorage.text import is_storable, to_storable

MAX_ID_CHARS: Final = 200
MAX_PROMPT_CHARS: Final = 20_000
_MAX_MODEL_CHARS: Final = 200
_MAX_TEXT_CHARS: Final = 100
_MAX_SHOWN_CHARS: Final = 60
_UNIX_TIME: Final = re.compile(r"[0-9]{9,13}(\.[0-9]+)?")  # fewer digits may be a date: 20261130


def parse_json(body: bytes) -> Any:
    """Parse a body as JSON (NaN, Infinity and a byte order mark are accepted); raises MalformedPayload."""
    try:
        return json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise MalformedPayload(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise MalformedPayload("the body is nested too deeply") from error
    except ValueError as error:  # not JSON, or an integer of more than 4,300 digits
        raise MalformedPayload(f"the body is not valid JSON: {to_storable(str(error), 200)}") from error


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse a body as a JSON object; raises MalformedPayload."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise MalformedPayload(f"the body is JSON but not an object: {type(value).__name__}")
    return value


def optional_prompt(model_input: Any) -> str | None:
    """Return the prompt of a model's input, storable."""
    prompt = model_input.get("prompt") if isinstance(model_input, Mapping) else None
    return to_storable(prompt, MAX_PROMPT_CHARS) if isinstance(prompt, str) and prompt.strip() else None


@contextlib.contextmanager
def translate_malformed(error_type: type[MoorageError], message: str) -> Iterator[None]:
    """Convert MalformedPayload to an error of another type; its text is appended to the message."""
    try:
        yield
    except MalformedPayload as error:
        raise error_type(f"{message}: {error}") from error


def require_id(value: object, field: str) -> str:
    """Return the provider's id of a prediction, also from an integer; raises MalformedPayload with the field's name."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text:
        raise MalformedPayload(f"{field} is missing or not an id")
    if len(text) > MAX_ID_CHARS:
        raise MalformedPayload(f"{field} has {len(text)} characters, more than {MAX_ID_CHARS}")
    if not is_storable(text):
        raise MalformedPayload(f"{field} contains a NUL or a lone surrogate: {to_storable(text, _MAX_SHOWN_CHARS)}")
    return text


def require_text(value: object, field: str) -> str:
    """Return a text field; raises MalformedPayload if it is missing."""
    if not isinstance(value, str) or not value:
        raise MalformedPayload(f"{field} is missing or not text")
    return to_storable(value, _MAX_TEXT_CHARS)


def optional_text(value: object) -> str | None:
    """Return a field as storable text, None if empty; other JSON values are serialized."""
    if value is None or value == "":
        return None
    if isinstance(value, Mapping) and isinstance(value.get("message"), str):
        return optional_text(value["message"])
    return to_storable(value if isinstance(value, str) else json.dumps(value))


def optional_datetime(value: object) -> datetime | None:
    """Return an ISO 8601 time in UTC (the default without an offset), None if invalid."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # OverflowError: the year 1 or 9999 with an offset
        return None


def optional_unix_time(value: object) -> datetime | None:
    """Return a time in Unix seconds, or milliseconds from 10^11 on, also as text; None if invalid."""
    if isinstance(value, str) and _UNIX_TIME.fullmatch(value):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 10**14:
        return None
    return datetime.fromtimestamp(value if value < 10**11 else value / 1000, UTC)


def optional_model(fields: Mapping[str, Any]) -> str | None:
    model = fields.get("model")
    return to_storable(model, _MAX_MODEL_CHARS) if isinstance(model, str) and model else None
