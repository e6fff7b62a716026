"""How the console shows times, sizes and charts, and a webhook's body without what it may keep secret."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup

from moorage import logs
from moorage.text import format_age, format_duration
from web.page.cards import format_bytes

MAX_CHARS: Final = 20_000
MAX_STRING: Final = 500
_SECRET: Final = re.compile("secret|token|password|signature|authorization|api_?key|cookie", re.IGNORECASE)
_URL: Final = re.compile(r"""https?://[^\s"'<>]+""")


def format_time(at: datetime | None, now: datetime) -> str:
    """Return a `time` element: "12 s ago", "in 12 s"; the time itself as its title."""
    if at is None:
        return "never"
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S}", format_age(at, now)
    )


def build_bars(values: Sequence[float], height: int = 36) -> list[dict[str, float]]:
    """Return the bars of a chart: x, y and height in units of the SVG, the largest value as high as the chart."""
    largest = max(values, default=0) or 1
    heights = [max(value / largest * height, 1.0 if value else 0.0) for value in values]
    return [{"x": 10 * n, "y": round(height - h, 1), "height": round(h, 1)} for n, h in enumerate(heights)]


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "duration": format_duration,
    "time": format_time,
    "bytes": format_bytes,
    "bars": build_bars,
}


def redact_body(body: bytes) -> str:
    """Return a body as text, a JSON body indented; at most 20,000 characters."""
    text = body.decode("utf-8", "backslashreplace")
    try:
        parsed = json.dumps(_redact(json.loads(text)), indent=2, ensure_ascii=False)
        text = parsed.encode(errors="backslashreplace").decode()  # UTF-8 has no bytes for a lone surrogate
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
