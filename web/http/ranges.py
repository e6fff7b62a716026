"""Range and If-None-Match headers (RFC 9110, 13 and 14)."""

import re
from typing import Annotated, Final

from fastapi import Header

RangeHeader = Annotated[str | None, Header(alias="Range", description="one range of bytes", examples=["bytes=0-99"])]
ByteRange = tuple[int, int] | None  # the first and the last byte; None: the whole file

_SINGLE_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)


class RangeNotSatisfiable(Exception):
    """The range starts after the end of the file."""


def parse_range(header: str | None, size: int) -> ByteRange:
    """Return the first and last byte of a Range header; None for the whole file, also if malformed (RFC 9110 14.2)."""
    match = _SINGLE_RANGE.fullmatch(header) if header is not None else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        if int(last) == 0:
            raise RangeNotSatisfiable
        return max(0, size - int(last)), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable
    return int(first), min(int(last), size - 1) if last else size - 1


def matches_etag(header: str | None, etag: str) -> bool:
    """Return True if an If-None-Match header contains the entity tag (weak comparison)."""
    if header is None:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag in [tag.removeprefix("W/") for tag in tags]
