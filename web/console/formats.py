"""Filters of the console's templates: times, durations, sizes, and charts as SVG."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup

from moorage.text import format_age, format_duration

_SIZES: Final = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def format_time(at: datetime | None, now: datetime) -> str:
    """Return a `time` element: "12 s ago", "in 12 s"; the time itself as its title."""
    if at is None:
        return "never"
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S}", format_age(at, now)
    )


def format_bytes(size: int) -> str:
    unit, divisor = next((unit for unit in _SIZES if size >= unit[1]), ("B", 1))
    return f"{size / divisor:.3g} {unit}"


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
