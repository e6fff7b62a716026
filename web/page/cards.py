"""The card of a job on the page: its state, files, and available actions."""

import math
from collections.abc import Container
from typing import Final, Literal
from urllib.parse import quote, urlencode

from db.connection import Row

CardState = Literal["waiting", "keeping", "kept", "partial", "placeholder", "failed", "expired", "cancelled"]

# The job states that a card state may have, so that a filter by card state reads only those jobs.
JOB_STATES: Final[dict[CardState, tuple[str, ...]]] = {
    "waiting": ("open",),
    "keeping": ("keeping",),
    "kept": ("succeeded",),
    "partial": ("partial",),
    "placeholder": ("succeeded", "partial", "failed"),
    "failed": ("failed",),
    "expired": ("failed",),
    "cancelled": ("cancelled",),
}
# By the state of the latest prediction. A planned one may be waiting for the provider's in-flight limit.
_WAITING_DETAILS: Final = {
    "planned": "Queued for {}",
    "submitting": "Submitting to {}",
    "running": "Submitted to {}",
    "abandoned": "{} did not respond in time",
}
_STATE_DETAILS: Final = {
    "expired": "The provider deleted the files before they were stored.",
    "placeholder": "Generation failed. A placeholder is shown until a result arrives.",
}
KINDS: Final = {"image": "Images", "video": "Videos", "mixed": "Mixed"}
_UNITS: Final = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_MAX_REASON_CHARS: Final = 200


def build_card(row: Row, variants: list[Row], scopes: Container[str] = ("jobs", "delete")) -> Row:
    """
    Return what the page shows of a row of `db.reports.my_renders`: images and videos, the cover first, and other files.

    `reason` of the row is as its owner sees it; the variants have the URLs of their files.
    """
    is_published, state = row["render_id"] is not None, row["shown"]
    cover_first = sorted(variants, key=lambda variant: (not variant["is_cover"], variant["idx"]))
    files = [{**variant, "label": _label_file(variant)} for variant in cover_first]
    title = row["title"] or row["prompt"] or " ".join(part for part in (row["style"], row["room_type"]) if part)
    project = row["project_id"]
    if project and row["scene"] is not None:
        project = f"{project}, scene {row['scene']}"
    source = {} if row["provider"] == "placeholder" else {"Model": row["model"], "Provider": row["provider"]}
    details = {"Prompt": row["prompt"], **source, "Attempts": row["tries"]}
    return {
        "job_id": row["id"],
        "state": state,
        "label": state_label(state, row),
        "detail": _state_detail(state, row),
        "title": title or ("Untitled video" if row["kind"] == "video" else "Untitled image"),
        "facts": [str(fact) for fact in (row["style"], row["room_type"], row["mode"], project) if fact],
        "created_at": row["created_at"],
        "file_count": row["files"],
        "kept_count": row["kept"],
        "files": [file for file in files if file["media"] != "file"],
        "other_files": [file for file in files if file["media"] == "file"],
        "details": {name: str(value) for name, value in details.items() if value},
        "is_favourite": row["favourite"],
        "can_retry": "jobs" in scopes and (row["can_retry"] or state == "placeholder"),
        "can_cancel": "jobs" in scopes and row["settled_at"] is None,
        "can_mark": "jobs" in scopes and is_published,
        "can_delete": "delete" in scopes and is_published and row["settled_at"] is not None,
    }


def state_label(state: CardState, row: Row) -> str:
    if state == "waiting":
        return "Waiting" if row["tries"] < 2 else f"Waiting, attempt {row['tries']}"
    if state == "keeping":
        return f"Keeping {row['kept']} of {row['files']}"
    if state == "partial":
        return f"Partial: {row['kept']} of {row['files']}"
    return state.capitalize()


def _state_detail(state: CardState, row: Row) -> str | None:
    if state == "waiting":
        detail = _WAITING_DETAILS.get(row["prediction"])
        return detail.format(row["provider"]) if detail else None
    if state in ("failed", "partial", "cancelled"):
        return _to_sentence(row["reason"])
    return _STATE_DETAILS.get(state)


def _label_file(row: Row) -> str:
    """Return what a file is: "WAV, 0:12, 1.1 MB", "PNG, 1024 x 768, 320 kB"."""
    seconds = row["duration_s"]
    minutes, rest = divmod(math.ceil(seconds or 0), 60)
    length = f"{minutes}:{rest:02}" if seconds else None
    shape = f"{row['width_px']} × {row['height_px']}" if row["width_px"] else None  # noqa: RUF001
    return ", ".join(filter(None, (row["format"].upper(), shape, length, format_bytes(row["bytes"]))))


def format_bytes(size: int) -> str:
    unit, divisor = next((unit for unit in _UNITS if size >= unit[1]), ("B", 1))
    return f"{size / divisor:.3g} {unit}"


def _to_sentence(text: str | None) -> str | None:
    if not text:
        return None
    sentence = text[:1].upper() + text[1:]
    is_short = len(sentence) <= _MAX_REASON_CHARS
    return sentence if is_short else sentence[: _MAX_REASON_CHARS - 1].rstrip() + "…"


def summarize_filters(filters: dict[str, str]) -> str:
    """Return the active filters as text: "Videos, Kept, oil"; empty without filters."""
    kind, state, style, project_id = (filters[name] for name in ("kind", "state", "style", "project_id"))
    return ", ".join(text for text in (KINDS.get(kind, kind), state.capitalize(), style, project_id) if text)


def encode_filters(filters: dict[str, str], **extra: str) -> str:
    return urlencode({name: value for name, value in {**filters, **extra}.items() if value}, quote_via=quote)
