"""What stands on the card of a job: its state in plain words, its pictures, what can be done about it. Pure."""

from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode
from uuid import UUID

from db.connection import Row
from storage import urls

CardState = Literal["waiting", "keeping", "kept", "partial", "placeholder", "failed", "expired", "cancelled"]

# What a card may show, and the states that its job may be in: so that a filter passes over the others unseen.
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
# What is told of a job that waits, by the state of its latest prediction. What is planned may wait for others to end.
_WAITING_DETAILS: Final = {
    "planned": "Waiting for its turn at {}",
    "submitting": "Being sent to {}",
    "running": "Sent to {}",
    "abandoned": "{} has not answered in time",
}
KINDS: Final = {"image": "Images", "video": "Videos", "mixed": "Mixed"}
_MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class CardFile:
    """One published file, as the page shows it."""

    idx: int
    url: str
    thumb_url: str | None
    width_px: int
    height_px: int
    color: str
    is_video: bool
    is_placeholder: bool
    content_type: str
    megabytes: float


@dataclass(frozen=True, slots=True)
class Card:
    """One job, as the page shows it."""

    job_id: UUID
    shown: CardState
    label: str
    detail: str | None
    title: str
    facts: tuple[str, ...]
    at: Any
    files: int
    kept: int
    pictures: tuple[CardFile, ...]
    can_retry: bool
    can_cancel: bool

    @property
    def cover(self) -> CardFile | None:
        """Return the picture that stands for the others."""
        return self.pictures[0] if self.pictures else None


def build_card(row: Row, variants: list[Row], base: str) -> Card:
    """Return the card of a row of `db.reports.my_renders`, with its published files; the cover comes first."""
    ordered = sorted(variants, key=lambda v: (not v["is_cover"], v["idx"]))
    pictures = tuple(_build_file(v, base) for v in ordered)
    shown = row["shown"]
    return Card(
        job_id=row["id"],
        shown=shown,
        label=state_label(shown, row),
        detail=_state_detail(shown, row),
        title=_title(row),
        facts=_facts(row),
        at=row["created_at"],
        files=row["files"],
        kept=row["kept"],
        pictures=pictures,
        can_retry=bool(row["can_retry"]) or shown == "placeholder",
        can_cancel=row["state"] in ("open", "keeping"),
    )


def state_label(shown: CardState, row: Row) -> str:
    """Return a state as a person reads it, with the count where there is one."""
    if shown == "waiting":
        return "Waiting" if row["tries"] < 2 else f"Waiting, try {row['tries']}"
    if shown == "keeping":
        return f"Keeping {row['kept']} of {row['files']}"
    if shown == "partial":
        return f"Partial: {row['kept']} of {row['files']}"
    return shown.capitalize()


def _state_detail(shown: CardState, row: Row) -> str | None:
    if shown == "waiting":
        return (
            _WAITING_DETAILS[row["prediction"]].format(row["provider"])
            if row["prediction"] in _WAITING_DETAILS
            else None
        )
    if shown in ("failed", "partial", "cancelled"):
        return _to_sentence(row["why"] or row["reason"])
    if shown == "expired":
        return "Its files were gone before they could be kept."
    if shown == "placeholder":
        return "The real one could not be made; if it still comes, it takes this place."
    return None


def _title(row: Row) -> str:
    named = row["prompt"] or " ".join(part for part in (row["style"], row["room_type"]) if part)
    return named or ("Untitled video" if row["kind"] == "video" else "Untitled picture")


def _facts(row: Row) -> tuple[str, ...]:
    place = row["project_id"]
    if place and row["scene"] is not None:
        place = f"{place}, scene {row['scene']}"
    return tuple(str(fact) for fact in (row["style"], row["room_type"], row["mode"], place) if fact)


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
        is_placeholder=row["is_placeholder"],
        content_type=row["content_type"],
        megabytes=round(row["bytes"] / 1e6, 1),
    )


def _to_sentence(text: str | None) -> str | None:
    """Return a reason as a sentence on the page begins, and no longer than a card has room for."""
    if not text:
        return None
    told = text[:1].upper() + text[1:]
    return told if len(told) <= _MAX_REASON else told[: _MAX_REASON - 1].rstrip() + "…"


def summarize_filters(filters: dict[str, str]) -> str:
    """Return what a list is filtered by, in the words of its filters; empty: by nothing."""
    kind, state, *named = filters["kind"], filters["state"], filters["style"], filters["project_id"]
    return ", ".join(word for word in (KINDS.get(kind, kind), state.capitalize(), *named) if word)


def encode_filters(filters: dict[str, str], **more: str) -> str:
    """Return filters as the query of an address, without those that are empty."""
    return urlencode({name: value for name, value in {**filters, **more}.items() if value}, quote_via=quote)
