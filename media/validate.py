"""Validation of a file: complete, of an accepted format, within the limits."""

import os
from dataclasses import dataclass

from media import confined, files, images, sniff, video
from media.containers import ContainerError, VideoFacts
from media.limits import Limits
from media.sniff import FileFormat
from moorage.errors import InvalidMedia
from moorage.local_errors import translate_local_errors
from moorage.model import FetchedFile, Media, Thumbnail
from moorage.text import to_storable


@dataclass(frozen=True, slots=True)
class ValidatedFile:
    """A video may lack the thumbnail, for the reason `thumb_missing`; a file of another kind has none."""

    media: Media
    thumb: Thumbnail | None
    thumb_missing: str | None


def validate_file(fetched: FetchedFile, limits: Limits) -> ValidatedFile:
    """
    Decode an image completely, or walk the structure of another file, and render the thumbnail. Repositions it at 0.

    Raises InvalidMedia (another format, truncated, malformed, or over a limit; with measurements), LocalFailure.
    """
    head = _read_head(fetched)
    kind = sniff.detect_format(head) or sniff.find_named_format(fetched.declared_extension, fetched.declared_type)
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
    cap, setting = limits.get_size_limit(kind.media)
    size = fetched.size_bytes
    if size > cap:
        facts = {"format": kind.name, "bytes": size, "limit": cap}
        raise InvalidMedia(f"{size} bytes, the limit is {cap} ({setting})", facts=facts)
    if kind.media == "image":
        _require_accepted(kind, size, limits)
        media, thumbnail = images.validate_image(fetched, kind, limits)
        return ValidatedFile(media, thumbnail, None)
    try:
        if kind.media == "file" and kind is not sniff.M4A:
            _require_accepted(kind, size, limits)
            if size > images.INLINE_BYTES and not limits.is_confined:
                facts = {"format": kind.name, "bytes": size}
                return ValidatedFile(*confined.validate_in_process(fetched, limits, facts), None)
            return ValidatedFile(files.parse_file(fetched, kind), None, None)
        container = video.parse_container(fetched.file, kind)
    except ContainerError as error:
        problem = to_storable(str(error), 500)
        message = f"the {kind.name} is {problem if kind.name in files.PARSERS else f'malformed: {problem}'}"
        raise InvalidMedia(message, facts={"format": kind.name, "bytes": size, "container": problem}) from error
    kind = _distinguish_audio(kind, container)
    _require_accepted(kind, size, limits)
    return _build_container_result(fetched, kind, container, limits)


def _require_accepted(kind: FileFormat, size: int, limits: Limits) -> None:
    if kind.name not in limits.accept:
        message = f"the format {kind.name} is not accepted (MOORAGE_ACCEPT)"
        raise InvalidMedia(message, facts={"format": kind.name, "bytes": size})


def _distinguish_audio(kind: FileFormat, facts: VideoFacts) -> FileFormat:
    """Return the format of sound in a container for video, and MP4 for pictures under a brand for sound."""
    if facts.is_audio:
        return sniff.AUDIO_OF_VIDEO.get(kind, kind)
    return sniff.MP4 if kind is sniff.M4A else kind


def _build_container_result(fetched: FetchedFile, kind: FileFormat, facts: VideoFacts, limits: Limits) -> ValidatedFile:
    media = Media(
        kind.media, kind.name, kind.content_type, kind.extension, facts.width_px, facts.height_px,
        duration_s=facts.duration_s, notes=facts.note,
    )  # fmt: skip
    if facts.is_audio:
        return ValidatedFile(media, None, None)
    try:
        return ValidatedFile(media, video.extract_poster(fetched.file, kind, limits), None)
    except video.PosterError as error:
        return ValidatedFile(media, None, to_storable(str(error), 500))
