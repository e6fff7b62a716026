"""Validation of files that are neither images nor videos: their structure is walked, nothing is decoded."""

from collections.abc import Callable
from typing import Final

from media import archives, audio, flac, ogg, texts
from media.containers import Data, FileFacts, map_file
from media.sniff import FileFormat
from moorage.model import FetchedFile, Media

PARSERS: Final[dict[str, Callable[[Data], FileFacts]]] = {
    "svg": texts.parse_svg, "json": texts.parse_json, "txt": texts.parse_text, "pdf": texts.parse_pdf,
    "wav": audio.parse_wav, "mp3": audio.parse_mp3, "flac": flac.parse_flac, "ogg": ogg.parse_ogg,
    "zip": archives.parse_zip, "glb": archives.parse_glb,
}  # fmt: skip


def parse_file(fetched: FetchedFile, kind: FileFormat) -> Media:
    """Return the properties of a file; raises ContainerError if it is not complete."""
    with map_file(fetched.file) as data:
        facts = PARSERS[kind.name](data)
    content_type = facts.content_type or kind.content_type
    return Media("file", kind.name, content_type, kind.extension, duration_s=facts.duration_s, notes=facts.note)
