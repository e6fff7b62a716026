"""Documents made of text: SVG, JSON, plain text, PDF."""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any, Final
from xml.parsers import expat

from media.containers import ContainerError, Data, FileFacts

_CHUNK_BYTES: Final = 1 << 16
_PARSED_BYTES: Final = 2 * 2**20  # of JSON: values in memory take up to twenty times as much
_BOM: Final = b"\xef\xbb\xbf"
# Possessive repeats: others remember each character of a text, 120 bytes for each.
_TOKENS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}"]', re.DOTALL)
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
# Names that servers use in the description of an error, by their letters; a document of these alone is one.
_TEXTS: Final = frozenset({"detail", "message", "msg"})  # results have them, too
_ERRORS: Final = _TEXTS | {"error", "errors", "err", "errormessage", "exception", "fault"}
_ERROR_WORDS: Final = _ERRORS | frozenset(
    {"code", "status", "statuscode", "errorcode", "errordescription", "errortype", "type", "title", "instance",
     "details", "requestid", "traceid", "trace", "timestamp", "path", "success", "ok", "reason", "name", "retryafter",
     "documentationurl", "hint", "data", "result", "hostid", "resource", "jsonapi"}
)  # fmt: skip
_TAG: Final = re.compile(rb"<[a-z/!?]", re.IGNORECASE)
_FAILURES: Final = ("error", "failed", "failure", "fail")
_PDF_END_BYTES: Final = 2048
_PDF_OBJECT: Final = re.compile(rb"(?:^|[\r\n \t])\d{1,10}\s+\d{1,5}\s+obj\b")
_PDF_XREF: Final = re.compile(rb"startxref\s+(\d{1,12})\s+%%EOF")
_PDF_LENGTH: Final = re.compile(rb"/Linearized\b[^>]*?/L\s+(\d{1,12})\b")


def parse_svg(data: Data) -> FileFacts:
    """Parse an SVG to its end; raises ContainerError if it is not well-formed XML with the root `svg`."""
    parser, roots = expat.ParserCreate(), []

    def check_root(name: str, _attributes: Mapping[str, str]) -> None:
        roots.append(name)
        parser.StartElementHandler = None
        if name.rpartition(":")[2] != "svg":
            raise ContainerError(f"an XML document ({name[:40]})")

    parser.StartElementHandler = check_root
    try:
        offset = 0
        while offset < len(data):  # in doubling parts: expat reads an unfinished attribute again with each part
            end = offset + max(_CHUNK_BYTES, offset)
            parser.Parse(data[offset:end])
            offset = end
        parser.Parse(b"", True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise ContainerError(f"truncated or malformed: {error}") from error
    return FileFacts()


def parse_json(data: Data) -> FileFacts:
    """Check a JSON document; raises ContainerError if it is incomplete, or the description of an error."""
    check_json(data, 0, len(data))
    return FileFacts()


def check_json(data: Data, start: int, end: int) -> None:
    """Parse a JSON document, or count its brackets if it is long; raises ContainerError."""
    start += len(_BOM) if data[start : start + 3] == _BOM else 0
    while end > start and not data[end - 1]:  # a padded chunk
        end -= 1
    if end - start > _PARSED_BYTES:
        _check_encoding(data, start, end)
        _check_brackets(data, start, end)
        return
    try:
        value = json.loads(data[start:end].decode())
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"truncated or malformed: {error}") from error
    if not isinstance(value, dict | list) or not value:
        raise ContainerError("not a JSON document: it has no content")
    if describes_error(value):
        raise ContainerError("a description of an error")


def describes_error(value: Any) -> bool:
    """Return True if a JSON document is what a server sends in the place of a file."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, dict) and describes_error(item) for item in value)
    if not isinstance(value, dict):
        return False
    fields = {re.sub("[^a-z]", "", str(name).lower()): item for name, item in value.items()}
    content = [item for name, item in fields.items() if name not in _ERROR_WORDS or name in ("data", "result")]
    if any(item if isinstance(item, list) else isinstance(item, dict) and any(item.values()) for item in content):
        return False
    problems = {name for name in _ERRORS & fields.keys() if isinstance(fields[name], str | dict | list | bool)}
    problems = {name for name in problems if fields[name] and (name != "message" or isinstance(fields[name], str))}
    is_negative = fields.get("success") is False or fields.get("ok") is False or fields.get("status") in _FAILURES
    if is_negative or problems - _TEXTS:
        return True
    codes = (fields.get(name) for name in ("status", "statuscode", "code"))
    is_refusal = any(isinstance(code, int) and 400 <= code <= 599 for code in codes)
    return not fields.keys() - _ERROR_WORDS and (is_refusal or bool(problems))


def _check_brackets(data: Data, start: int, end: int) -> None:
    depth, expected = 0, bytearray()
    for match in _TOKENS.finditer(data, start, end):
        token = data[match.start()]  # no copy of a long text
        if token in b"{[":
            expected.append(token + 2)  # the closing one
        elif token in b"}]":
            depth = len(expected)
            if not depth or expected.pop() != token:
                raise ContainerError(f"malformed: unexpected bracket at byte {match.start()}")
            if depth == 1 and data[match.end() : end].strip():
                raise ContainerError(f"malformed: it goes on at byte {match.end()}")
        elif match.end() - match.start() == 1:
            raise ContainerError("truncated: it ends within a string")
        elif not expected:
            break
    if expected or not depth:
        raise ContainerError("truncated or malformed: a bracket is not closed")


def _check_encoding(data: Data, start: int, end: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for offset in range(start, end, _CHUNK_BYTES):
            chunk = decoder.decode(data[offset : min(end, offset + _CHUNK_BYTES)])
            if match := _CONTROL.search(chunk):
                raise ContainerError(f"malformed: it has the control character {ord(match[0]):#04x}")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ContainerError("truncated or malformed: it is not UTF-8") from error


def parse_text(data: Data) -> FileFacts:
    """Check a plain text. Raises ContainerError if it is not UTF-8, or a page or error in the place of a file."""
    start = data[:4096].removeprefix(_BOM).lstrip()
    if not start:
        raise ContainerError("empty")
    if _TAG.match(start):
        raise ContainerError("a page or another document with tags")
    _check_encoding(data, 0, len(data))
    if start[:1] in b"{[" and len(data) <= _PARSED_BYTES:
        try:
            value = json.loads(data[:].removeprefix(_BOM))
        except (ValueError, RecursionError):
            return FileFacts()
        if describes_error(value):
            raise ContainerError("a description of an error")
    return FileFacts()


def parse_pdf(data: Data) -> FileFacts:
    """Check beginning, end and object table of a PDF; raises ContainerError if one is missing."""
    head = data[:1024]
    first = _PDF_OBJECT.search(head)
    if not first or bytes(16) in head[: first.start()]:
        raise ContainerError("damaged: it begins without an object")
    stated = _PDF_LENGTH.search(head)
    if stated and int(stated[1]) > len(data):
        raise ContainerError(f"truncated: {len(data)} of {int(stated[1])} bytes are there")
    tail_start = max(0, len(data) - _PDF_END_BYTES)
    ends = list(_PDF_XREF.finditer(data[tail_start:]))
    if not ends:
        raise ContainerError("truncated: its end mark is missing")
    offset = int(ends[-1][1])
    table = data[offset : offset + 64].lstrip(b"\0\t\n\f\r ")
    if not table.startswith(b"xref") and not re.match(rb"\d+\s+\d+\s+obj\b", table):
        raise ContainerError(f"damaged: no object table at byte {offset}")
    if table.startswith(b"xref"):
        _check_objects(data, offset)
    return FileFacts()


def _check_objects(data: Data, offset: int) -> None:
    """Check that the first objects that a table names are where it says."""
    section = re.compile(rb"xref\s+(\d+)\s+(\d+)\s+((?:\d{10} \d{5} [nf]\s{1,2}){1,64})").search(data, offset)
    if section is None:
        return
    for entry in re.finditer(rb"(\d{10}) \d{5} n", section[3]):
        place = int(entry[1])
        if not re.match(rb"\s*\d+\s+\d+\s+obj\s*[<\[(/\d+.tfn%-]", data[place : place + 64]):
            raise ContainerError(f"damaged: no object at byte {place}")
