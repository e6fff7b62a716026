"""A job's card: its state, and a reason if there are no files."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from web.page import cards

JOB = UUID("0198a000-0000-7000-8000-000000000000")


def row(**fields: Any) -> dict[str, Any]:
    """Return a row as `db.reports.my_renders` does, of a job that failed without a reason."""
    names = ("prompt", "style", "room_type", "mode", "project_id", "scene", "provider", "prediction", "why", "reason",
             "model", "title", "render_id", "settled_at", "favourite")  # fmt: skip
    counts = {"files": 0, "kept": 0, "tries": 1}
    states = {"state": "failed", "shown": "failed"}
    known = {"id": JOB, "kind": "image", **states, "created_at": datetime(2026, 11, 21, tzinfo=UTC)}
    return {**dict.fromkeys(names), **counts, **known, "can_retry": False, **fields}


def variant(idx: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a row of the view `variants`."""
    file = {"key": f"renders/{idx}.png", "thumb_key": None, "media": "image", "content_type": "image/png", "bytes": 9}
    file |= {"format": "png", "duration_s": None}
    return {"idx": idx, "is_cover": False, "is_placeholder": False, "width_px": 3, "height_px": 2, "color": None} | (
        file | fields
    )


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"shown": "waiting"}, "Waiting"),
        ({"shown": "waiting", "tries": 3}, "Waiting, attempt 3"),
        ({"shown": "keeping", "files": 3, "kept": 2}, "Keeping 2 of 3"),
        ({"shown": "kept", "files": 1, "kept": 1}, "Kept"),
        ({"shown": "partial", "files": 3, "kept": 2}, "Partial: 2 of 3"),
        ({"shown": "placeholder"}, "Placeholder"),
        ({"shown": "failed"}, "Failed"),
        ({"shown": "expired", "files": 2}, "Expired"),
        ({"shown": "cancelled"}, "Cancelled"),
    ],
)
def test_a_state_label_has_its_count(fields: dict[str, Any], label: str) -> None:
    """Users should see whether more files will arrive."""
    assert cards.build_card(row(**fields), [])["label"] == label


@pytest.mark.parametrize(
    ("prediction", "detail"),
    [
        ("planned", "Queued for fal"),
        ("submitting", "Submitting to fal"),
        ("running", "Submitted to fal"),
        ("abandoned", "fal did not respond in time"),
        ("failed", None),
    ],
)
def test_a_waiting_job_shows_the_state_of_its_prediction(prediction: str, detail: str | None) -> None:
    """A request that was not sent must not be shown as submitted."""
    card = cards.build_card(row(shown="waiting", prediction=prediction, provider="fal"), [])

    assert card["detail"] == detail


def test_a_placeholder_can_be_retried() -> None:
    """It looks like a result and is none."""
    card = cards.build_card(row(shown="placeholder"), [variant(is_placeholder=True, is_cover=True)])

    assert card["can_retry"]
    assert card["detail"] is not None
    assert "placeholder is shown until a result arrives" in card["detail"]


def test_active_filters_are_summarized() -> None:
    """A collapsed filter that hides renders must remain visible."""
    none = dict.fromkeys(("kind", "state", "style", "project_id"), "")

    assert cards.summarize_filters(none) == ""
    assert cards.summarize_filters({**none, "kind": "video", "state": "kept", "style": "oil"}) == "Videos, Kept, oil"


def test_the_cover_is_the_first_file() -> None:
    """After a late success the cover is not the first file by index."""
    card = cards.build_card(row(shown="kept"), [variant(1), variant(2, is_cover=True), variant(3)])

    assert [file["idx"] for file in card["files"]] == [2, 1, 3]


def test_a_reason_is_a_sentence_of_limited_length() -> None:
    """A provider's stack trace must not fill the page."""
    short, long = cards.build_card(row(reason="no room"), []), cards.build_card(row(reason="no " * 500), [])

    assert short["detail"] == "No room"
    assert long["detail"] is not None
    assert len(long["detail"]) <= 200
    assert long["detail"].endswith("…")
