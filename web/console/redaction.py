"""Shows a webhook's body without what it may keep secret: queries of URLs, inline files, keys and tokens."""

import json
import re
from typing import Any, Final

from moorage import logs

MAX_CHARS: Final = 20_000
MAX_STRING: Final = 500
_SECRET: Final = re.compile("secret|token|password|signature|authorization|api_?key|cookie", re.IGNORECASE)
_URL: Final = re.compile(r"""https?://[^\s"'<>]+""")


def redact_body(body: bytes) -> str:
    """Return a body as text, a JSON body indented; at most 20,000 characters."""
    text = body.decode("utf-8", "backslashreplace")
    try:
        text = json.dumps(_redact(json.loads(text)), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = _redact_text(text, MAX_CHARS)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}\n… {len(text) - MAX_CHARS} more characters"


def _redact(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "…" if _SECRET.search(name) and item else _redact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_redact(item) for item in value]
    return _redact_text(value, MAX_STRING) if isinstance(value, str) else value


def _redact_text(text: str, limit: int) -> str:
    if text.startswith("data:"):
        return f"{text[:40]}… ({len(text)} characters)"
    text = _URL.sub(lambda match: logs.redact_url(match[0]), text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
