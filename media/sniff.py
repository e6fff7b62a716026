"""File formats by their first bytes."""

import re
from dataclasses import dataclass
from typing import Final

from media import audio
from moorage.model import MediaKind

HEAD_BYTES: Final = 4096  # enough for every format below, accepted or not


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
MOV = FileFormat("video", "mov", "video/quicktime", "mov")
MKV = FileFormat("video", "mkv", "video/x-matroska", "mkv")
WAV, MP3, FLAC, OGG, M4A, WEBA, MKA, SVG, GLB, ZIP, PDF, JSON, TEXT = (
    FileFormat("file", name, content_type, name)
    for name, content_type in (
        ("wav", "audio/wav"), ("mp3", "audio/mpeg"), ("flac", "audio/flac"), ("ogg", "audio/ogg"), ("m4a", "audio/mp4"),
        ("weba", "audio/webm"), ("mka", "audio/x-matroska"),
        ("svg", "image/svg+xml"), ("glb", "model/gltf-binary"), ("zip", "application/zip"), ("pdf", "application/pdf"),
        ("json", "application/json"), ("txt", "text/plain"),
    )
)  # fmt: skip
AUDIO_OF_VIDEO: Final = {MP4: M4A, MOV: M4A, WEBM: WEBA, MKV: MKA}  # the same container without pictures
_WITHOUT_SIGNATURE: Final = {kind.name: kind for kind in (JSON, TEXT, SVG)}
_MAGIC: Final = {b"fLaC": FLAC, b"OggS": OGG, b"glTF": GLB, b"PK\x03\x04": ZIP, b"%PDF-": PDF, b"ID3": MP3}

# ISO base media files that are something else, by major brand.
_OTHER_BRANDS: Final = {
    b"heic": "a HEIC image", b"heix": "a HEIC image", b"hevc": "a HEIC sequence", b"heim": "a HEIC image",
    b"heis": "a HEIC image", b"mif1": "a HEIF image", b"msf1": "a HEIF sequence", b"crx ": "a raw photo",
    b"jp2 ": "a JPEG 2000 image",
}  # fmt: skip
_OTHER_MAGIC: Final = {
    b"\x1f\x8b": "gzip data", b"BM": "a BMP image", b"II*\x00": "a TIFF image", b"MM\x00*": "a TIFF image",
    b"\xff\x0a": "a JPEG XL image", b"\x00\x00\x00\x0cJXL ": "a JPEG XL image",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image", b"RIFF": "a RIFF file that is neither WebP nor WAV",
    b"\x1aE\xdf\xa3": "a file like Matroska, but of another type",
}  # fmt: skip
_EBML_DOC_TYPE = re.compile(rb"\x42\x82(?:[\x80-\xff]|\x40.)(webm|matroska)", re.DOTALL)
# What may precede the root of an SVG: declaration, comments, document type. Without the `+` after the repetition, each
# of them would double the time in which a head without a root is refused.
_SVG = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?.*?\?>\s*|<!--.*?-->\s*|<!DOCTYPE\s+(?:\w+:)?svg\b[^>\[]*(?:\[.*?\]\s*)?>\s*)*+"
    rb"<(?:[A-Za-z_][\w.-]*:)?svg[\s>/]",
    re.DOTALL,
)
# QuickTime files from before the brand: the first box.
_QUICKTIME_BOXES: Final = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|script)\b", re.IGNORECASE)


def detect_format(head: bytes) -> FileFormat | None:
    """Return the format of a file by its first bytes; None also for text, which has no signature."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head[:4] in (b"RIFF", b"RF64"):
        return {b"WEBP": WEBP, b"WAVE": WAV}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _detect_iso_format(head)
    if head.startswith(b"\x1aE\xdf\xa3"):
        match = _EBML_DOC_TYPE.search(head[:80])
        return {b"webm": WEBM, b"matroska": MKV}[match[1]] if match else None
    if audio.parse_mp3_frame(head) is not None:
        return MP3
    if known := next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None):
        return known
    if head[4:8] in _QUICKTIME_BOXES:
        return MOV
    return SVG if _SVG.match(head) else None


def find_named_format(extension: str | None, content_type: str | None) -> FileFormat | None:
    """Return a format without a signature, if the extension of the address and the content type both name it."""
    kind = _WITHOUT_SIGNATURE.get((extension or "").lower())
    stated = (content_type or "").partition(";")[0].strip().lower()
    return kind if kind and stated == kind.content_type else None


def _detect_iso_format(head: bytes) -> FileFormat | None:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[offset : offset + 4] for offset in (8, *range(16, end - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return AVIF
    major = head[8:12]
    if major in (b"M4A ", b"M4B "):
        return M4A
    if major == b"qt  ":
        return MOV
    return None if major in _OTHER_BRANDS else MP4


def describe_unknown_format(head: bytes) -> str:
    """Return the apparent type of an unaccepted file, for messages: "a web page (text/html)"."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "an empty file"
    if _HTML.search(text) and text.startswith(b"<"):
        return "a web page (text/html)"
    if b"<svg" in text:
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
