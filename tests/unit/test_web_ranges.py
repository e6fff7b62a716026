"""Ranges of a file (RFC 9110)."""

import pytest

from web.api import assets
from web.http.problems import Problem


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=2-5", (2, 5)),
        ("Bytes = 2-99 ", (2, 9)),
        ("bytes=7-", (7, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-99", (0, 9)),
        (None, None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=\u0660-\u0661", None),
        ("bytes=0-" + "9" * 40, None),
    ],
)
def test_a_range_is_parsed_or_the_whole_file_sent(header: str | None, span: tuple[int, int] | None) -> None:
    """Players seek with it; for malformed ranges the whole file is always allowed (RFC 9110, 14.2)."""
    assert assets.parse_range(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_after_the_end_is_rejected(header: str) -> None:
    """An empty 206 would be interpreted as the rest of the file."""
    with pytest.raises(Problem, match="starts after the end") as refused:
        assets.parse_range(header, 10)

    assert (refused.value.status, refused.value.headers) == (416, {"Content-Range": "bytes */10"})


@pytest.mark.parametrize(
    ("header", "is_named"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False), (None, False)],
)
def test_a_tag_is_found_in_a_list(header: str | None, is_named: bool) -> None:
    """Caches send all versions they have."""
    assert assets.matches_etag(header, '"a"') == is_named
