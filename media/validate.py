"""Validation of a file: complete, of an accepted format, within the limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from media import archives, audio, confined, flac, images, mp4, ogg, poster, sniff, texts, webm
from media.containers import ContainerError, Data, FileFacts, map_file
from media.limits import Limits
from media.sniff import FileFormat
from moorage.errors import InvalidMedia
from moorage.local_errors import translate_local_errors
from moorage.model import FetchedFile, Media, Thumbnail
from moorage.text import to_storable

# Of files that are no images: their structure is walked, nothing is decoded.
PARSERS: Final[dict[str, Callable[[Data], FileFacts]]] = {
    "mp4": mp4.parse_mp4, "mov": mp4.parse_mp4, "m4a": mp4.parse_mp4, "webm": webm.parse_webm, "mkv": webm.parse_webm,
    "svg": texts.parse_svg, "json": texts.parse_json, "txt": texts.parse_text, "pdf": texts.parse_pdf,
    "wav": audio.parse_wav, "mp3": audio.parse_mp3, "flac": flac.parse_flac, "ogg": ogg.parse_ogg,
    "zip": archives.parse_zip, "glb": archives.parse_glb,
}  # fmt: skip
_OF_VIDEO: Final = frozenset({*sniff.AUDIO_OF_VIDEO, sniff.M4A})  # containers of video or sound


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
    with translate_local_errors("reading the temporary file"):
        fetched.file.seek(0)
        head = fetched.file.read(sniff.HEAD_BYTES)
    kind = sniff.detect_format(head) or sniff.find_named_format(fetched.declared_extension, fetched.declared_type)
    if kind is None:
        declared_type = to_storable(fetched.declared_type or "", 200) or None
        facts = {"bytes": fetched.size_bytes, "declared_type": declared_type, "starts": head[:32].hex()}
        raise InvalidMedia(f"{sniff.describe_unknown_format(head)} instead of an image or video", facts=facts)
    try:
        return _validate(fetched, kind, limits)
    finally:
        fetched.file.seek(0)


def _validate(fetched: FetchedFile, kind: FileFormat, limits: Limits) -> ValidatedFile:
    cap, setting = limits.get_size_limit(kind.media)
    size = fetched.size_bytes
    if size > cap:
        facts = {"format": kind.name, "bytes": size, "limit": cap}
        raise InvalidMedia(f"{size} bytes, the limit is {cap} ({setting})", facts=facts)
    if kind not in _OF_VIDEO:
        _require_accepted(kind, size, limits)
        if kind.media == "image":
            return ValidatedFile(*images.validate_image(fetched, kind, limits), None)
        if size > images.INLINE_BYTES and not limits.is_confined:
            facts = {"format": kind.name, "bytes": size}
            return ValidatedFile(*confined.validate_in_process(fetched, limits, facts), None)
    container = _parse(fetched, kind)
    if kind in _OF_VIDEO:
        kind = _distinguish_audio(kind, container)
        _require_accepted(kind, size, limits)
    media = Media(
        kind.media, kind.name, container.content_type or kind.content_type, kind.extension,
        container.width_px, container.height_px, duration_s=container.duration_s, notes=container.note,
    )  # fmt: skip
    if kind.media == "file" or limits.is_confined:  # nobody looks at the poster of an upload
        return ValidatedFile(media, None, None)
    try:
        return ValidatedFile(media, poster.extract_poster(fetched.file, kind, limits), None)
    except poster.PosterError as error:
        return ValidatedFile(media, None, to_storable(str(error), 500))


def _parse(fetched: FetchedFile, kind: FileFormat) -> FileFacts:
    try:
        with map_file(fetched.file) as data:
            return PARSERS[kind.name](data)
    except ContainerError as error:
        problem = to_storable(str(error), 500)
        message = f"the {kind.name} is {f'malformed: {problem}' if kind in _OF_VIDEO else problem}"
        facts = {"format": kind.name, "bytes": fetched.size_bytes, "container": problem}
        raise InvalidMedia(message, facts=facts) from error


def _require_accepted(kind: FileFormat, size: int, limits: Limits) -> None:
    if kind.name not in limits.accept:
        message = f"the format {kind.name} is not accepted (MOORAGE_ACCEPT)"
        raise InvalidMedia(message, facts={"format": kind.name, "bytes": size})


def _distinguish_audio(kind: FileFormat, facts: FileFacts) -> FileFormat:
    """Return the format of sound in a container for video, and MP4 for pictures under a brand for sound."""
    if facts.is_audio:
        return sniff.AUDIO_OF_VIDEO.get(kind, kind)
    return sniff.MP4 if kind is sniff.M4A else kind
