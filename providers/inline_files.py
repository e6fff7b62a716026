"""Files inside a response: `data:` URIs and base64 texts."""

import base64
import binascii
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from moorage.provider_types import OutputFile

# Never splits an escape. Decoding 15 MB of "%41" at once took 1.2 GB.
_PIECE: Final = re.compile(r"(?:%[0-9A-Fa-f]{2}|.){1,4096}", re.DOTALL)
_DATA_TEXT: Final = re.compile(r"data:(?:\s|[^,;/]+,|[^,;/]*$)", re.IGNORECASE)  # not a URI: "data: see below"
_KEY: Final = re.compile(r"(?:.*[_.-])?(?:b64|base64)(?:_json|_data)?", re.IGNORECASE)
# The first bytes, in both alphabets, of PNG, JPEG, RIFF (WebP, WAV), GIF, ISO media (MP4, AVIF), EBML (WebM), MP3 (two
# forms), Ogg, FLAC, ZIP, PDF, GLB and SVG.
_SIGNATURE: Final = re.compile(
    r"iVBORw0KGg|[/_]9j[/_]|UklGR|R0lGODlh|R0lGODdh|AAAA..Z0eX|GkXfo|SUQz|[/_][/_+-][I-Po-v]|T2dnU|ZkxhQ|UEsDB|JVBERi"
    r"|Z2xURg|PHN2Zy"
)
_BASE64_TEXT: Final = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}")  # encoders for mail break lines
_MIN_SIGNED_CHARS: Final = 64  # a shorter text is no picture
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:" and not _DATA_TEXT.match(text)


def is_base64_file(text: str, key: str | None) -> bool:
    """Return True if a text is a file: by its key ("b64_json"), or because it begins with the signature of a format."""
    if key is not None and _KEY.fullmatch(key):
        return bool(text)
    return len(text) >= _MIN_SIGNED_CHARS and bool(_SIGNATURE.match(text) and _BASE64_TEXT.fullmatch(text))


def decode_data_uri(path: str, uri: str) -> OutputFile:
    """Return the file in a `data:` URI, or the problem if it is malformed."""
    try:
        return OutputFile(path, data=_decode_data_uri(uri))
    except ValueError as error:
        return OutputFile(path, problem=f"the data: URI is malformed: {error}")


def decode_base64_file(path: str, text: str) -> OutputFile:
    """Return the file in a base64 text or a `data:` URI, or the problem if it is invalid."""
    text = text.strip()
    if text[:5].lower() == "data:":
        return decode_data_uri(path, text)
    try:
        return OutputFile(path, data=_decode_base64(text.encode("ascii", "replace")))
    except ValueError as error:
        return OutputFile(path, problem=str(error))


def _decode_data_uri(uri: str) -> bytes:
    """Return the bytes of a `data:` URI (RFC 2397); raises ValueError."""
    head, comma, payload = uri[5:].partition(",")
    if not comma:
        raise ValueError("no comma")
    try:
        data = b"".join(unquote_to_bytes(piece[0]) for piece in _PIECE.finditer(payload))
    except UnicodeEncodeError:  # a lone surrogate; the original message would show the payload
        raise ValueError("lone surrogate") from None
    if "base64" in head.lower().replace(" ", "").split(";")[1:]:
        data = _decode_base64(data)
    if not data:
        raise ValueError("empty")
    return data


def _decode_base64(data: bytes) -> bytes:
    """Decode the standard or the URL-safe alphabet, padded or not; raises ValueError."""
    packed = b"".join(data.split()).translate(_URL_SAFE).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error
