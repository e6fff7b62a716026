"""
The names of objects. A key names the bytes and the attempt that stored them, so no two attempts share one.

Lease tokens are random (UUIDv4): the first 8 digits of a UUIDv7 would be the same for a minute.
"""

import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

RENDERS: Final = "renders/"
INPUTS: Final = "inputs/"
QUARANTINE: Final = "quarantine/"

_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_EXTENSION: Final = "[a-z0-9]{1,8}"
_RENDERED: Final = re.compile(
    rf"renders/(?P<render>{_UUID})/(?P<idx>0|[1-9][0-9]{{0,8}})-(?P<sha>[0-9a-f]{{16}})-(?P<token>[0-9a-f]{{8}})"
    rf"(?:(?P<thumb>_thumb\.webp)|\.(?P<extension>{_EXTENSION}))"
)
_SPOOLED: Final = re.compile(rf"inputs/(?P<upload>{_UUID})\.(?P<extension>{_EXTENSION})")


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the key of an original or of its thumbnail says."""

    render_id: UUID
    idx: int
    sha256_start: str  # the first 16 hex digits, of the original's bytes also in a thumbnail's key
    token_start: str  # the first 8 hex digits of the lease token that stored it
    extension: str
    is_thumbnail: bool


@dataclass(frozen=True, slots=True)
class Spooled:
    """What the key of an input file says."""

    upload_id: UUID
    extension: str


def original(render_id: UUID, idx: int, sha256: str, token: UUID, extension: str) -> str:
    """Return the key of a kept file: `renders/{render_id}/{idx}-{sha256[:16]}-{token[:8]}.{extension}`."""
    return f"{_stem(render_id, idx, sha256, token)}.{extension}"


def thumbnail(render_id: UUID, idx: int, sha256: str, token: UUID) -> str:
    """Return the key of a kept file's thumbnail; `sha256` is the original's, so that both stand side by side."""
    return f"{_stem(render_id, idx, sha256, token)}_thumb.webp"


def spool(upload_id: UUID, extension: str) -> str:
    """Return the key of an input file in the private bucket: `inputs/{upload_id}.{extension}`."""
    return f"{INPUTS}{upload_id}.{extension}"


def quarantined(key: str) -> str:
    """Return where an orphan waits for its end, in the private bucket: `quarantine/{key}`."""
    return f"{QUARANTINE}{key}"


def parse(key: str) -> Rendered | Spooled | None:
    """Return what a key says, or None when it is not one that the functions above make."""
    if match := _RENDERED.fullmatch(key):
        return Rendered(
            render_id=UUID(match["render"]),
            idx=int(match["idx"]),
            sha256_start=match["sha"],
            token_start=match["token"],
            extension=match["extension"] or "webp",
            is_thumbnail=match["thumb"] is not None,
        )
    if match := _SPOOLED.fullmatch(key):
        return Spooled(UUID(match["upload"]), match["extension"])
    return None


def _stem(render_id: UUID, idx: int, sha256: str, token: UUID) -> str:
    return f"{RENDERS}{render_id}/{idx}-{sha256[:16]}-{token.hex[:8]}"
