"""A file from its download to its record, as types: its bytes, what they show, its thumbnail, its objects."""

from dataclasses import dataclass, field
from typing import BinaryIO, Literal

MediaKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of an output in an unnamed temporary file, positioned at 0."""

    file: BinaryIO
    bytes: int
    sha256: str  # hex
    declared_type: str | None = None  # Content-Type as the server said; never trusted


@dataclass(frozen=True, slots=True)
class Media:
    """
    What validation found out about a file.

    Sizes are upright (after EXIF orientation), in pixels. `notes` says which metadata was unreadable and cost nothing.
    """

    media: MediaKind
    format: str  # png jpeg webp gif avif mp4 webm
    content_type: str
    extension: str
    width_px: int | None = None
    height_px: int | None = None
    frames: int | None = None
    duration_s: float | None = None
    notes: str | None = None


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A WebP picture that fits the thumbnail square."""

    data: bytes = field(repr=False)
    sha256: str
    width_px: int
    height_px: int
    color: str | None = None  # of the whole picture: "#8a7f70"


@dataclass(frozen=True, slots=True)
class Kept:
    """The facts of a stored file, as they are recorded on its output."""

    media: Media
    bytes: int
    sha256: str
    key: str
    thumb: Thumbnail | None
    thumb_key: str | None
    thumb_missing: str | None
