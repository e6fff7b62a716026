"""Whether a file is a whole picture or video of an accepted format, and what it is."""

import os
from dataclasses import dataclass

from media import images, sniff, video
from media.containers import ContainerError
from media.limits import Limits
from media.sniff import Kind
from moorage.errors import DiskFull, Invalid
from moorage.model import Fetched, Media, Thumbnail
from moorage.text import storable


@dataclass(frozen=True, slots=True)
class Examined:
    """A file that may be kept. Only a video may lack the thumbnail; `thumb_missing` then says why."""

    media: Media
    thumb: Thumbnail | None
    thumb_missing: str | None


def examine(fetched: Fetched, limits: Limits) -> Examined:
    """
    Decode a picture to its end, or walk a video's container to its end, and make the thumbnail. The file is at 0 after.

    Raises:
        Invalid: the bytes are something else, cut, broken, or over a limit; the facts say what was measured.
        DiskFull: the temporary folder failed.
    """
    head = _head(fetched)
    kind = sniff.kind(head)
    if kind is None:
        raise Invalid(
            f"{sniff.name(head)} instead of a picture or video",
            facts={
                "bytes": fetched.bytes,
                "declared_type": storable(fetched.declared_type or "", 200) or None,
                "starts": head[:32].hex(),
            },
        )
    try:
        return _examine(fetched, kind, limits)
    finally:
        fetched.file.seek(0)


def _head(fetched: Fetched) -> bytes:
    try:
        fetched.file.seek(0, os.SEEK_SET)
        return fetched.file.read(sniff.HEAD_BYTES)
    except OSError as error:
        raise DiskFull(f"reading the temporary file: {error}", facts={"errno": error.errno}) from error


def _examine(fetched: Fetched, kind: Kind, limits: Limits) -> Examined:
    cap = limits.image_max_bytes if kind.media == "image" else limits.video_max_bytes
    if fetched.bytes > cap:
        raise Invalid(
            f"{fetched.bytes} bytes, the limit is {cap}",
            facts={"format": kind.format, "bytes": fetched.bytes, "limit": cap},
        )
    if kind.media == "image":
        media, thumbnail = images.examine(fetched, kind, limits)
        return Examined(media, thumbnail, None)
    return _video(fetched, kind, limits)


def _video(fetched: Fetched, kind: Kind, limits: Limits) -> Examined:
    try:
        facts = video.facts(fetched.file, fetched.bytes, kind)
    except ContainerError as error:
        raise Invalid(
            f"the {kind.format} is not whole: {error}",
            facts={"format": kind.format, "bytes": fetched.bytes, "container": storable(str(error), 500)},
        ) from error
    media = Media(
        "video", kind.format, kind.content_type, kind.extension, facts.width_px, facts.height_px,
        duration_s=facts.duration_s,
    )  # fmt: skip
    try:
        return Examined(media, video.poster(fetched.file, kind, limits), None)
    except video.PosterError as error:
        return Examined(media, None, storable(str(error), 500))
