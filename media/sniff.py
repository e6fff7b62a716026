"""What a file is, from its first bytes."""

import re
from dataclasses import dataclass
from typing import Final

from moorage.model import MediaKind

HEAD_BYTES: Final = 512  # enough for every format below and for the name of what is none


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format that is kept."""

    media: MediaKind
    name: str
    content_type: str
    extension: str


PNG, JPEG, WEBP, GIF, AVIF = (
    FileFormat("image", name, f"image/{name}", extension)
    for name, extension in (("png", "png"), ("jpeg", "jpg"), ("webp", "webp"), ("gif", "gif"), ("avif", "avif"))
)
MP4, WEBM = (FileFormat("video", name, f"video/{name}", name) for name in ("mp4", "webm"))

# ISO base media files that are something else, by major brand.
_OTHER_BRANDS: Final = {
    b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"hevc": "a HEIC sequence", b"heim": "a HEIC picture",
    b"heis": "a HEIC picture", b"mif1": "a HEIF picture", b"msf1": "a HEIF sequence", b"crx ": "a raw photo",
    b"qt  ": "a QuickTime movie", b"M4A ": "a sound file", b"M4B ": "a sound file", b"jp2 ": "a JPEG 2000 picture",
}  # fmt: skip
_OTHER_MAGIC: Final = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BM", "a BMP picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "a sound file"),
    (b"\x1aE\xdf\xa3", "a Matroska file that is not WebM"),
    (b"RIFF", "a RIFF file that is not WebP"),
)
_EBML_DOC_TYPE = re.compile(rb"\x42\x82(?:[\x80-\xff]|\x40.)webm", re.DOTALL)
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|script)\b", re.IGNORECASE)


def detect_format(head: bytes) -> FileFormat | None:
    """Return the format of a file that starts like this, or None when it is none that is kept."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":
        return _iso(head)
    if head.startswith(b"\x1aE\xdf\xa3") and _EBML_DOC_TYPE.search(head[:80]):
        return WEBM
    return None


def _iso(head: bytes) -> FileFormat | None:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[at : at + 4] for at in (8, *range(16, end - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return AVIF
    return None if head[8:12] in _OTHER_BRANDS else MP4


def describe_unknown_format(head: bytes) -> str:
    """Return what an unknown file seems to be, as it stands in an error: "a web page (text/html)"."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "an empty file"
    if _HTML.search(text) and text.startswith(b"<"):
        return "a web page (text/html)"
    if text.startswith(b"<svg") or b"<svg" in text[:HEAD_BYTES]:
        return "an SVG drawing"
    if text.startswith((b"<?xml", b"<Error")):
        return "an XML document"
    if head[4:8] == b"ftyp":
        return _OTHER_BRANDS.get(head[8:12], "an unknown ISO media file")
    known = next((what for magic, what in _OTHER_MAGIC if head.startswith(magic)), None)
    return known or _text(text)


def _text(head: bytes) -> str:
    try:
        readable = head.decode("utf-8", errors="strict" if len(head) < HEAD_BYTES - 8 else "ignore")
    except UnicodeDecodeError:
        return "unknown bytes"
    if not readable or any(ord(c) < 32 and c not in "\t\n\r\f" for c in readable):
        return "unknown bytes"
    return "JSON (application/json)" if readable[0] in "{[" else "text"
