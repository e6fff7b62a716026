"""The files in a response: every URL and `data:` URI, in document order, with its path."""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator
from json import dumps
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from moorage.errors import MalformedPayload
from moorage.provider_types import OutputFile
from moorage.text import to_storable
from moorage.urls import MAX_URL_CHARS

MAX_FILES: Final = 1000
_MAX_PATH_CHARS: Final = 400
# Never splits an escape. Decoding 15 MB of "%41" at once took 1.2 GB.
_PIECE: Final = re.compile(r"(?:%[0-9A-Fa-f]{2}|.){1,4096}", re.DOTALL)
_Item = tuple[str, str | None, Any]  # path, key in an object, value
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def extract_files(
    value: Any, path: str, check_url: Callable[[str], str | None], *, key: str | None = None
) -> tuple[OutputFile, ...]:
    """
    Return the files in a JSON value: each string that starts with `https:`, `http:` or `data:`, at any depth.

    Replicate's client accepts `https:` and `data:` (helpers.py, transform_output). `http:` is included, to be
    refused with a reason. Raises MalformedPayload for more than 1,000 files.

    Args:
        path: of the value itself ("output"); the rest is appended as `output[2]`, `output.images[0].url`.
        check_url: returns None for a URL that may be downloaded, else the problem.
        key: only strings under this key of an object.
    """
    files: list[OutputFile] = []
    for file_path, name, text in _iterate_strings(value, path):
        if key is not None and name != key:
            continue
        scheme = text[:6].lower()
        if scheme.startswith(("https:", "http:")):
            files.append(_url_file(file_path, text, check_url(text)))
        elif scheme.startswith("data:"):
            files.append(_data_file(file_path, text))
        if len(files) > MAX_FILES:
            raise MalformedPayload(f"{path} has more than {MAX_FILES} files")
    return tuple(files)


def decode_base64_file(path: str, text: str) -> OutputFile:
    """Return the file in a base64 text, or the problem if it is invalid."""
    try:
        data = _decode_base64(text.encode("ascii", "replace"))
    except ValueError as error:
        return OutputFile(path, problem=str(error))
    return OutputFile(path, data=data)


def _url_file(path: str, url: str, problem: str | None) -> OutputFile:
    return OutputFile(path, url=to_storable(url, MAX_URL_CHARS) if problem else url, problem=problem)


def _data_file(path: str, uri: str) -> OutputFile:
    try:
        data = _decode_data_uri(uri)
    except ValueError as error:
        return OutputFile(path, problem=f"the data: URI is malformed: {error}")
    return OutputFile(path, data=data)


def _decode_data_uri(uri: str) -> bytes:
    """Return the bytes of a `data:` URI (RFC 2397); raises ValueError."""
    head, comma, payload = uri[5:].partition(",")
    if not comma:
        raise ValueError("no comma")
    try:
        data = b"".join(unquote_to_bytes(piece[0]) for piece in _PIECE.finditer(payload))
    except UnicodeEncodeError:  # a lone surrogate; the original message would show the payload
        raise ValueError("lone surrogate") from None
    if head.lower().replace(" ", "").endswith(";base64"):
        data = _decode_base64(data)
    if not data:
        raise ValueError("empty")
    return data


def _decode_base64(data: bytes) -> bytes:
    packed = b"".join(data.split())
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error


def _iterate_strings(value: Any, path: str) -> Iterator[tuple[str, str | None, str]]:
    """Yield every string with its path, and its key if it is in an object. Not recursive: JSON may be nested deeply."""
    levels: list[Iterator[_Item]] = [iter([(path, None, value)])]
    while levels:
        for item_path, name, item in levels[-1]:
            if isinstance(item, str):
                yield item_path, name, item
            elif isinstance(item, dict | list):
                levels.append(_child_items(item_path, item))
                break
        else:
            levels.pop()


def _child_items(path: str, value: dict[str, Any] | list[Any]) -> Iterator[_Item]:
    if isinstance(value, list):
        return ((_shorten(f"{path}[{index}]"), None, item) for index, item in enumerate(value))
    return ((_shorten(path + _format_key(key)), key, item) for key, item in value.items())


def _format_key(key: str) -> str:
    return f".{key}" if _PLAIN_KEY.fullmatch(key) else f"[{dumps(key)}]"


def _shorten(path: str) -> str:
    """Shorten a path for a unique index: the end of a long one is replaced by a digest of the whole."""
    if len(path) <= _MAX_PATH_CHARS:
        return path
    digest = hashlib.sha256(path.encode()).hexdigest()[:32]
    return f"{path[: _MAX_PATH_CHARS - 33]}~{digest}"
