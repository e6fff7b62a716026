"""Reads multipart/form-data: files into temporary files as they come, fields into memory, all of it bounded."""

from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from starlette.requests import Request

from moorage.text import is_storable
from web.http.problems import Problem
from web.services import upload_spool
from web.services.upload_spool import SpooledFile, UploadSpool

MAX_FIELDS: Final = 100
MAX_FIELD_BYTES: Final = 2**20  # of one field; a job as JSON is the largest
MAX_FIELDS_BYTES: Final = 2**20  # of all fields together
_OVERHEAD_BYTES: Final = 2**20
_MAX_TYPE_CHARS: Final = 256  # of a Content-Type: reading its parameters takes the square of its length


@dataclass(slots=True)
class Form:
    """What a form held: texts by name, and files with their names, which are closed or given away by who asked."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, SpooledFile]] = field(default_factory=list)

    def close(self) -> None:
        """Close every file."""
        for _, file in self.files:
            file.file.close()


def is_form(request: Request) -> bool:
    """Return whether a request says that its body is a form."""
    return _media_type(request).get_content_type() == "multipart/form-data"


async def read_form(request: Request, spool: UploadSpool, *, max_files: int) -> Form:
    """
    Return the form in a request's body.

    Raises:
        Problem: 400 not a whole form, 408 too slow, 413 too large, 422 a name twice or too many parts, 503 no room.
    """
    boundary = _media_type(request).get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise Problem(400, "the Content-Type names no boundary of 1 to 70 characters")
    check_content_length(request, max_files * spool.max_bytes + _OVERHEAD_BYTES)
    form = Form()
    try:
        await _read_parts(request, _PartParser(boundary), form, spool, max_files)
    except BaseException:
        form.close()
        raise
    return form


def check_content_length(request: Request, max_bytes: int) -> None:
    """Return when the announced length is within the limit, or none is announced. Raises Problem: 413."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > max_bytes):
        raise upload_spool.file_too_large(max_bytes)


async def _read_parts(request: Request, parts: "_PartParser", form: Form, room: UploadSpool, max_files: int) -> None:
    texts: dict[str, bytearray] = {}
    current: SpooledFile | bytearray = bytearray()
    async for chunk in upload_spool.read_chunks(request):
        for begun, data in parts.feed(chunk):
            if begun is not None:
                current = _start_part(begun, texts, form, room, max_files)
            if isinstance(current, SpooledFile):
                await current.write(data)
            else:
                current += data
                if sum(map(len, texts.values())) > MAX_FIELDS_BYTES:
                    raise Problem(413, f"the fields are larger than {MAX_FIELDS_BYTES} bytes together")
    parts.check_end()
    form.fields.update({name: _decode_field(name, bytes(value)) for name, value in texts.items()})


def _start_part(
    part: "_Part", texts: dict[str, bytearray], form: Form, room: UploadSpool, max_files: int
) -> SpooledFile | bytearray:
    if part.is_file:
        if len(form.files) >= max_files:
            raise _wrong(part.name, f"is one file too many: {max_files} may be sent")
        form.files.append((part.name, room.create_file()))
        return form.files[-1][1]
    if part.name in texts or len(texts) >= MAX_FIELDS:
        raise _wrong(part.name, "is given twice: write it once" if part.name in texts else "is one field too many")
    return texts.setdefault(part.name, bytearray())


def _decode_field(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _wrong(name, f"is not UTF-8 (byte {error.start})") from error


def _wrong(name: str, message: str) -> Problem:
    shown = name[:60] if is_storable(name) else ""
    return Problem(422, f"{shown} {message}".strip(), errors=[{"field": shown, "message": message}])


def _media_type(request: Request) -> Message:
    message = Message()
    given = request.headers.get("content-type", "")
    message["content-type"] = given if len(given) <= _MAX_TYPE_CHARS else ""
    return message


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    is_file: bool


class _PartParser:
    """The parser: chunks in, pieces of parts out; the first piece of a part brings its name."""

    def __init__(self, boundary: str) -> None:
        self._out: list[tuple[_Part | None, bytes]] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._name, self._value, self._ended = b"", b"", False
        callbacks: dict[str, Callable[..., Any]] = {
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": lambda data, start, end: self._out.append((None, data[start:end])),
            "on_end": self._on_end,
        }
        self._parser = MultipartParser(boundary.encode(), callbacks)  # type: ignore[arg-type]  # a TypedDict of these

    def feed(self, chunk: bytes) -> list[tuple[_Part | None, bytes]]:
        """Return what a chunk brings."""
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise Problem(400, f"the form cannot be read: {str(error)[:200]}") from error
        out, self._out = self._out, []
        return out

    def check_end(self) -> None:
        """Return when the last boundary was seen. Raises Problem: 400."""
        if not self._ended:
            raise Problem(400, "the form ended before its last boundary: send it again")

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers.append((self._name.lower(), self._value))
        self._name = self._value = b""

    def _on_headers(self) -> None:
        said = Message()
        said["content-disposition"] = dict(self._headers).get(b"content-disposition", b"").decode("utf-8", "replace")
        self._headers = []
        name = said.get_param("name", header="content-disposition")
        if said.get_content_disposition() != "form-data" or not isinstance(name, str) or not name:
            raise Problem(400, "a part of the form has no name")
        is_file = said.get_param("filename", header="content-disposition") is not None
        self._out.append((_Part(name, is_file), b""))

    def _on_end(self) -> None:
        self._ended = True
