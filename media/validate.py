"""Whether a file is a whole picture or video of an accepted format, and what it is."""

import os
from dataclasses import dataclass

from media import images, sniff, video
from media.containers import ContainerError
from media.limits import Limits
from media.sniff import FileFormat
from moorage.errors import DiskFull, InvalidMedia
from moorage.model import FetchedFile, Media, Thumbnail
from moorage.text import to_storable


@dataclass(frozen=True, slots=True)
class ValidatedFile:
    """A file that may be kept. Only a video may lack the thumbnail; `thumb_missing` then says why."""

    media: Media
    thumb: Thumbnail | None
    thumb_missing: str | None


def validate_file(fetched: FetchedFile, limits: Limits) -> ValidatedFile:
    """
    Decode a picture to its end, or walk a video's container to its end, and make the thumbnail. The file is at 0 after.

    Raises:
        Invalid: the bytes are something else, cut, broken, or over a limit; the facts say what was measured.
        DiskFull: the temporary folder failed.
    """
    head = _head(fetched)
    kind = sniff.detect_format(head)
    if kind is None:
        raise InvalidMedia(
            f"{sniff.describe_unknown_format(head)} instead of a picture or video",
            facts={
                "bytes": fetched.size_bytes,
                "declared_type": to_storable(fetched.declared_type or "", 200) or None,
                "starts": head[:32].hex(),
            },
        )
    try:
        return _examine(fetched, kind, limits)
    finally:
        fetched.file.seek(0)


def _head(fetched: FetchedFile) -> bytes:
    try:
        fetched.file.seek(0, os.SEEK_SET)
        return fetched.file.read(sniff.HEAD_BYTES)
    except OSError as error:
        raise DiskFull(f"reading the temporary file: {error}", facts={"errno": error.errno}) from error


def _examine(fetched: FetchedFile, kind: FileFormat, limits: Limits) -> ValidatedFile:
    cap = limits.image_max_bytes if kind.media == "image" else limits.video_max_bytes
    if fetched.size_bytes > cap:
        raise InvalidMedia(
            f"{fetched.size_bytes} bytes, the limit is {cap}",
            facts={"format": kind.name, "bytes": fetched.size_bytes, "limit": cap},
        )
    if kind.media == "image":
        media, thumbnail = images.validate_image(fetched, kind, limits)
        return ValidatedFile(media, thumbnail, None)
    return _video(fetched, kind, limits)


def _video(fetched: FetchedFile, kind: FileFormat, limits: Limits) -> ValidatedFile:
    try:
        facts = video.parse_container(fetched.file, fetched.size_bytes, kind)
    except ContainerError as error:
        raise InvalidMedia(
            f"the {kind.name} is not whole: {error}",
            facts={"format": kind.name, "bytes": fetched.size_bytes, "container": to_storable(str(error), 500)},
        ) from error
    media = Media(
        "video", kind.name, kind.content_type, kind.extension, facts.width_px, facts.height_px,
        duration_s=facts.duration_s,
    )  # fmt: skip
    try:
        return ValidatedFile(media, video.extract_poster(fetched.file, kind, limits), None)
    except video.PosterError as error:
        return ValidatedFile(media, None, to_storable(str(error), 500))
