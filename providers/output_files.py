"""The files that an answer names: every URL and `data:` URI in it, in document order, each with its path."""

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
# No piece ends inside an escape. In one piece, 15 MB of "%41" took 1.2 GB to decode.
_PIECE: Final = re.compile(r"(?:%[0-9A-Fa-f]{2}|.){1,4096}", re.DOTALL)
_Item = tuple[str, str | None, Any]  # its path, its name where it stands in an object, the value
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def extract_files(
    value: Any, path: str, check_url: Callable[[str], str | None], *, key: str | None = None
) -> tuple[OutputFile, ...]:
    """
    Return the files in a JSON value: each string that starts with `https:`, `http:` or `data:`, at any depth.

    Replicate's client takes `https:` and `data:` (helpers.py, transform_output). `http:` is named here too, so that it
    is refused with a reason where it is not allowed, instead of vanishing.

    Args:
        path: of the value itself ("output"); the rest follows as `output[2]`, `output.images[0].url`.
        allows: None for a URL that may be fetched, else the problem.
        key: only strings that stand under this name in an object.

    Raises:
        Unreadable: there are more than 1,000.
    """
    files: list[OutputFile] = []
    for where, name, text in _strings(value, path):
        if key is not None and name != key:
            continue
        scheme = text[:6].lower()
        if scheme.startswith(("https:", "http:")):
            files.append(_at_url(where, text, check_url(text)))
        elif scheme.startswith("data:"):
            files.append(_inline(where, text))
        if len(files) > MAX_FILES:
            raise MalformedPayload(f"{path} names more than {MAX_FILES} files")
    return tuple(files)


def decode_base64_file(path: str, text: str) -> OutputFile:
    """Return the file that a base64 text holds, or with the problem when it is none."""
    try:
        data = _base64(text.encode("ascii", "replace"))
    except ValueError as error:
        return OutputFile(path, problem=str(error))
    return OutputFile(path, data=data)


def _at_url(path: str, url: str, problem: str | None) -> OutputFile:
    return OutputFile(path, url=to_storable(url, MAX_URL_CHARS) if problem else url, problem=problem)


def _inline(path: str, uri: str) -> OutputFile:
    try:
        data = _decoded(uri)
    except ValueError as error:
        return OutputFile(path, problem=f"the data: URI is broken: {error}")
    return OutputFile(path, data=data)


def _decoded(uri: str) -> bytes:
    """Return the bytes of a `data:` URI (RFC 2397); raises ValueError that says what is wrong with it."""
    head, comma, payload = uri[5:].partition(",")
    if not comma:
        raise ValueError("it has no comma")
    try:
        data = b"".join(unquote_to_bytes(piece[0]) for piece in _PIECE.finditer(payload))
    except UnicodeEncodeError:  # half a character; its own message would show the payload
        raise ValueError("it holds half a character") from None
    if head.lower().replace(" ", "").endswith(";base64"):
        data = _base64(data)
    if not data:
        raise ValueError("it is empty")
    return data


def _base64(data: bytes) -> bytes:
    packed = b"".join(data.split())
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is not base64 ({error})") from error


def _strings(value: Any, path: str) -> Iterator[tuple[str, str | None, str]]:
    """
    Yield every string with its path, and its name where it stands in an object.

    Without recursion, since a body may nest as deeply as JSON can be read.
    """
    open_levels: list[Iterator[_Item]] = [iter([(path, None, value)])]
    while open_levels:
        for where, name, item in open_levels[-1]:
            if isinstance(item, str):
                yield where, name, item
            elif isinstance(item, dict | list):
                open_levels.append(_items(where, item))
                break
        else:
            open_levels.pop()


def _items(path: str, value: dict[str, Any] | list[Any]) -> Iterator[_Item]:
    if isinstance(value, list):
        return ((_bounded(f"{path}[{place}]"), None, item) for place, item in enumerate(value))
    return ((_bounded(path + _step(key)), key, item) for key, item in value.items())


def _step(key: str) -> str:
    return f".{key}" if _PLAIN_KEY.fullmatch(key) else f"[{dumps(key)}]"


def _bounded(path: str) -> str:
    """Return a path that fits a unique index: the end of a long one gives way to the digest of all of it."""
    if len(path) <= _MAX_PATH_CHARS:
        return path
    digest = hashlib.sha256(path.encode()).hexdigest()[:32]
    return f"{path[: _MAX_PATH_CHARS - 33]}~{digest}"
