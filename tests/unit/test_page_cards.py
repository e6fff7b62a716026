"""A job's state as the page tells it: one word for each, with a reason where there are no pictures."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from web.page import cards

JOB = UUID("0198a000-0000-7000-8000-000000000000")
BASE = "https://cdn.example/files"


def row(**fields: Any) -> dict[str, Any]:
    """Return a row as `db.gallery` gives it, of a job that failed for nothing in particular."""
    names = ("prompt", "style", "room_type", "mode", "project_id", "scene", "provider", "why", "reason")
    counts = {"files": 0, "kept": 0, "dead": 0, "expired": 0, "tries": 1}
    known = {"id": JOB, "kind": "image", "state": "failed", "created_at": datetime(2026, 11, 21, tzinfo=UTC)}
    return {**dict.fromkeys(names), **counts, **known, "can_retry": False, **fields}


def variant(idx: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a row of the view `variants`."""
    file = {"key": f"renders/{idx}.png", "thumb_key": None, "media": "image", "content_type": "image/png", "bytes": 9}
    return {"idx": idx, "is_cover": False, "is_placeholder": False, "width_px": 3, "height_px": 2, "color": None} | (
        file | fields
    )


@pytest.mark.parametrize(
    ("fields", "shown", "label"),
    [
        ({"state": "open"}, "waiting", "Waiting"),
        ({"state": "open", "tries": 3}, "waiting", "Waiting, try 3"),
        ({"state": "keeping", "files": 3, "kept": 2}, "keeping", "Keeping 2 of 3"),
        ({"state": "succeeded", "files": 1, "kept": 1}, "kept", "Kept"),
        ({"state": "partial", "files": 3, "kept": 2, "dead": 1}, "partial", "Partial: 2 of 3"),
        ({}, "failed", "Failed"),
        ({"files": 2, "dead": 2, "expired": 1}, "failed", "Failed"),
        ({"files": 2, "dead": 2, "expired": 2}, "expired", "Expired"),
        ({"state": "cancelled"}, "cancelled", "Cancelled"),
    ],
)
def test_a_state_is_told_as_it_is(fields: dict[str, Any], shown: str, label: str) -> None:
    """Nobody should have to guess whether something still comes."""
    made = cards.card(row(**fields), [], BASE)

    assert (made.shown, made.label) == (shown, label)


def test_a_placeholder_is_called_one_and_may_be_tried_again() -> None:
    """It looks like a picture and is none."""
    made = cards.card(row(state="partial"), [variant(is_placeholder=True, is_cover=True)], BASE)

    assert (made.shown, made.label, made.can_retry) == ("placeholder", "Placeholder", True)
    assert made.detail is not None
    assert "takes this place" in made.detail


def test_a_job_that_works_again_behind_its_placeholder_says_so() -> None:
    """The picture stays to be seen, and whoever waits is told that they need not ask again."""
    made = cards.card(row(state="open", tries=2), [variant(is_placeholder=True, is_cover=True)], BASE)

    assert (made.shown, made.can_retry, made.can_cancel) == ("waiting", False, True)


def test_the_cover_comes_first() -> None:
    """After a late success the cover is not the first file."""
    made = cards.card(row(state="succeeded"), [variant(1), variant(2, is_cover=True), variant(3)], BASE)

    assert [picture.idx for picture in made.pictures] == [2, 1, 3]


def test_a_reason_is_told_as_a_sentence_and_a_long_one_is_cut() -> None:
    """A provider's stack trace must not make a card of three screens."""
    short, made = cards.card(row(reason="no room"), [], BASE), cards.card(row(reason="no " * 500), [], BASE)

    assert short.detail == "No room"
    assert made.detail is not None
    assert len(made.detail) <= 200
    assert made.detail.endswith("…")
