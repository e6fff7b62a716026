"""Validation of a file: a complete image or video of an accepted format within the limits."""

import os
from dataclasses import dataclass

from media import images, sniff, video
from media.containers import ContainerError
from media.limits import Limits
from media.sniff import FileFormat
from moorage.errors import InvalidMedia
from moorage.local_errors import translate_local_errors
from moorage.model import FetchedFile, Media, Thumbnail
from moorage.text import to_storable


@dataclass(frozen=True, slots=True)
class ValidatedFile:
    """Only a video may lack the thumbnail; `thumb_missing` states the reason."""

    media: Media
    thumb: Thumbnail | None
    thumb_missing: str | None


def validate_file(fetched: FetchedFile, limits: Limits) -> ValidatedFile:
    """
    Decode an image completely, or parse the container of a video, and render the thumbnail. Repositions the file at 0.

    Raises InvalidMedia (another format, truncated, malformed, or over a limit; with measurements), LocalFailure.
    """
    head = _read_head(fetched)
    kind = sniff.detect_format(head)
    if kind is None:
        declared_type = to_storable(fetched.declared_type or "", 200) or None
        facts = {"bytes": fetched.size_bytes, "declared_type": declared_type, "starts": head[:32].hex()}
        raise InvalidMedia(f"{sniff.describe_unknown_format(head)} instead of an image or video", facts=facts)
    try:
        return _validate(fetched, kind, limits)
    finally:
        fetched.file.seek(0)


def _read_head(fetched: FetchedFile) -> bytes:
    with translate_local_errors("reading the temporary file"):
        fetched.file.seek(0, os.SEEK_SET)
        return fetched.file.read(sniff.HEAD_BYTES)


def _validate(fetched: FetchedFile, kind: FileFormat, limits: Limits) -> ValidatedFile:
    cap = limits.image_max_bytes if kind.media == "image" else limits.video_max_bytes
    setting = "MOORAGE_IMAGE_MAX_BYTES" if kind.media == "image" else "MOORAGE_VIDEO_MAX_BYTES"
    size = fetched.size_bytes
    if size > cap:
        facts = {"format": kind.name, "bytes": size, "limit": cap}
        raise InvalidMedia(f"{size} bytes, the limit is {cap} ({setting})", facts=facts)
    if kind.media == "image":
        media, thumbnail = images.validate_image(fetched, kind, limits)
        return ValidatedFile(media, thumbnail, None)
    return _validate_video(fetched, kind, limits)


def _validate_video(fetched: FetchedFile, kind: FileFormat, limits: Limits) -> ValidatedFile:
    try:
        facts = video.parse_container(fetched.file, fetched.size_bytes, kind)
    except ContainerError as error:
        raise InvalidMedia(
            f"the {kind.name} is malformed: {error}",
            facts={"format": kind.name, "bytes": fetched.size_bytes, "container": to_storable(str(error), 500)},
        ) from error
    media = Media(
        "video", kind.name, kind.content_type, kind.extension, facts.width_px, facts.height_px,
        duration_s=facts.duration_s, notes=facts.note,
    )  # fmt: skip
    try:
        return ValidatedFile(media, video.extract_poster(fetched.file, kind, limits), None)
    except video.PosterError as error:
        return ValidatedFile(media, None, to_storable(str(error), 500))
