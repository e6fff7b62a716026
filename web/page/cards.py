"""The card of a job on the page: its state, files, and available actions."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from urllib.parse import quote, urlencode
from uuid import UUID

from db.connection import Row
from storage import urls

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
_MAX_REASON_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class CardFile:
    idx: int
    url: str
    thumb_url: str | None
    width_px: int
    height_px: int
    color: str
    is_video: bool
    content_type: str


@dataclass(frozen=True, slots=True)
class Card:
    """One job, as the page shows it; the cover is the first of its files."""

    job_id: UUID
    state: CardState
    label: str
    detail: str | None
    title: str
    facts: tuple[str, ...]
    created_at: datetime
    file_count: int
    kept_count: int
    files: tuple[CardFile, ...]
    can_retry: bool
    can_cancel: bool

    @property
    def cover(self) -> CardFile | None:
        return self.files[0] if self.files else None


def build_card(row: Row, variants: list[Row], base: str) -> Card:
    """Return the card of a row of `db.reports.my_renders`, with its published files."""
    cover_first = sorted(variants, key=lambda variant: (not variant["is_cover"], variant["idx"]))
    state = row["shown"]
    return Card(
        job_id=row["id"],
        state=state,
        label=state_label(state, row),
        detail=_state_detail(state, row),
        title=_title(row),
        facts=_facts(row),
        created_at=row["created_at"],
        file_count=row["files"],
        kept_count=row["kept"],
        files=tuple(_build_file(variant, base) for variant in cover_first),
        can_retry=bool(row["can_retry"]) or state == "placeholder",
        can_cancel=row["state"] in ("open", "keeping"),
    )


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
        return _to_sentence(row["why"] or row["reason"])
    return _STATE_DETAILS.get(state)


def _title(row: Row) -> str:
    title = row["prompt"] or " ".join(part for part in (row["style"], row["room_type"]) if part)
    return title or ("Untitled video" if row["kind"] == "video" else "Untitled image")


def _facts(row: Row) -> tuple[str, ...]:
    project = row["project_id"]
    if project and row["scene"] is not None:
        project = f"{project}, scene {row['scene']}"
    return tuple(str(fact) for fact in (row["style"], row["room_type"], row["mode"], project) if fact)


def _build_file(row: Row, base: str) -> CardFile:
    thumb = row["thumb_key"]
    return CardFile(
        idx=row["idx"],
        url=urls.build_asset_url(base, row["key"]),
        thumb_url=urls.build_asset_url(base, thumb) if thumb else None,
        width_px=row["width_px"] or 16,
        height_px=row["height_px"] or 9,
        color=row["color"] or "#808080",
        is_video=row["media"] == "video",
        content_type=row["content_type"],
    )


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
