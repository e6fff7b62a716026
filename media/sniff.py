"""File formats by their first bytes."""

import re
from dataclasses import dataclass
from typing import Final

from moorage.model import MediaKind

HEAD_BYTES: Final = 512  # enough for every format below, accepted or not


@dataclass(frozen=True, slots=True)
class FileFormat:
    media: MediaKind
    name: str
    content_type: str
    extension: str


PNG, JPEG, WEBP, GIF, AVIF = (
    FileFormat("image", name, f"image/{name}", extension)
    for name, extension in (("png", "png"), ("jpeg", "jpg"), ("webp", "webp"), ("gif", "gif"), ("avif", "avif"))
)
IMAGES: Final = {kind.name: kind for kind in (PNG, JPEG, WEBP, GIF, AVIF)}
MP4, WEBM = (FileFormat("video", name, f"video/{name}", name) for name in ("mp4", "webm"))

# ISO base media files that are something else, by major brand.
_OTHER_BRANDS: Final = {
    b"heic": "a HEIC image", b"heix": "a HEIC image", b"hevc": "a HEIC sequence", b"heim": "a HEIC image",
    b"heis": "a HEIC image", b"mif1": "a HEIF image", b"msf1": "a HEIF sequence", b"crx ": "a raw photo",
    b"qt  ": "a QuickTime movie", b"M4A ": "an audio file", b"M4B ": "an audio file", b"jp2 ": "a JPEG 2000 image",
}  # fmt: skip
_OTHER_MAGIC: Final = {
    b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "gzip data", b"BM": "a BMP image",
    b"II*\x00": "a TIFF image", b"MM\x00*": "a TIFF image", b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image", b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image", b"OggS": "an Ogg file",
    b"ID3": "an audio file", b"RIFF": "a RIFF file that is not WebP",
    b"\x1aE\xdf\xa3": "a Matroska file that is not WebM",
}  # fmt: skip
_EBML_DOC_TYPE = re.compile(rb"\x42\x82(?:[\x80-\xff]|\x40.)webm", re.DOTALL)
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|script)\b", re.IGNORECASE)


def detect_format(head: bytes) -> FileFormat | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":
        return _detect_iso_format(head)
    if head.startswith(b"\x1aE\xdf\xa3") and _EBML_DOC_TYPE.search(head[:80]):
        return WEBM
    return None


def _detect_iso_format(head: bytes) -> FileFormat | None:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[offset : offset + 4] for offset in (8, *range(16, end - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return AVIF
    return None if head[8:12] in _OTHER_BRANDS else MP4


def describe_unknown_format(head: bytes) -> str:
    """Return the apparent type of an unaccepted file, for messages: "a web page (text/html)"."""
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
    known = next((description for magic, description in _OTHER_MAGIC.items() if head.startswith(magic)), None)
    return known or _describe_text(text)


def _describe_text(head: bytes) -> str:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < HEAD_BYTES - 8 else "ignore")
    except UnicodeDecodeError:
        return "unknown bytes"
    if not text or any(ord(c) < 32 and c not in "\t\n\r\f" for c in text):
        return "unknown bytes"
    return "JSON (application/json)" if text[0] in "{[" else "text"
