"""Reads multipart/form-data: files into temporary files, fields into memory, with limits on both."""

from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, MultipartState
from starlette.requests import Request

from web.http.json_body import read_chunks
from web.http.problems import Problem
from web.http.validation import invalid_field
from web.services import upload_spool
from web.services.upload_spool import SpooledFile, UploadSpool

MAX_FIELDS: Final = 100
MAX_FIELDS_BYTES: Final = 2**20  # of all fields in total
Part = tuple[str, bool]  # the name, and whether it is a file

_OVERHEAD_BYTES: Final = 2**20
_MAX_TYPE_CHARS: Final = 256  # of a Content-Type: parsing its parameters takes quadratic time


@dataclass(slots=True)
class Form:
    """Fields by name, and files with their names. The caller closes the files."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, SpooledFile]] = field(default_factory=list)

    def close(self) -> None:
        for _, file in self.files:
            file.file.close()


def is_form(request: Request) -> bool:
    return _media_type(request).get_content_type() == "multipart/form-data"


async def read_form(request: Request, spool: UploadSpool, *, max_files: int) -> Form:
    """Return the form in a request's body. Raises Problem: 400, 408, 413, 422, or 503 if the disk is full."""
    boundary = _get_parameter(_media_type(request), "content-type", "boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise Problem(400, "Content-Type must have a boundary of 1 to 70 ASCII characters")
    check_content_length(request, max_files * spool.max_bytes + _OVERHEAD_BYTES)
    form = Form()
    try:
        await _read_parts(request, _PartParser(boundary), form, spool, max_files)
    except BaseException:
        form.close()
        raise
    return form


def check_content_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > max_bytes):
        raise upload_spool.file_too_large(max_bytes)


async def _read_parts(request: Request, parts: "_PartParser", form: Form, spool: UploadSpool, max_files: int) -> None:
    texts: dict[str, bytearray] = {}
    current: SpooledFile | bytearray = bytearray()
    async for chunk in read_chunks(request):
        for part, data in parts.feed(chunk):
            if part is not None:
                current = _start_part(part, texts, form, spool, max_files)
            if isinstance(current, SpooledFile):
                await current.write(data)
            else:
                current += data
                if sum(map(len, texts.values())) > MAX_FIELDS_BYTES:
                    raise Problem(413, f"the fields are larger than {MAX_FIELDS_BYTES} bytes in total")
    parts.check_end()
    form.fields.update({name: _decode_field(name, bytes(value)) for name, value in texts.items()})


def _start_part(
    part: Part, texts: dict[str, bytearray], form: Form, spool: UploadSpool, max_files: int
) -> SpooledFile | bytearray:
    name, is_file = part
    if is_file:
        if len(form.files) >= max_files:
            raise invalid_field(name, f"exceeds the limit of {max_files} files")
        form.files.append((name, spool.create_file()))
        return form.files[-1][1]
    if name in texts or len(texts) >= MAX_FIELDS:
        is_duplicate = name in texts
        message = "is given more than once" if is_duplicate else f"exceeds the limit of {MAX_FIELDS} fields"
        raise invalid_field(name, message)
    return texts.setdefault(name, bytearray())


def _decode_field(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise invalid_field(name, f"is not UTF-8 (byte {error.start})") from error


def _media_type(request: Request) -> Message:
    message = Message()
    content_type = request.headers.get("content-type", "")
    message["content-type"] = content_type if len(content_type) <= _MAX_TYPE_CHARS else ""
    return message


def _get_parameter(message: Message, header: str, name: str) -> Any:
    try:
        return message.get_param(name, header=header)
    except (TypeError, ValueError) as error:  # contradictory or huge numbers of continuations (RFC 2231)
        raise Problem(400, f"the parameters of {header} cannot be parsed: write {name}=VALUE") from error


class _PartParser:
    """Incremental parser: each chunk yields pieces of parts; the first piece of a part carries its header."""

    def __init__(self, boundary: str) -> None:
        self._out: list[tuple[Part | None, bytes]] = []
        self._name = self._value = self._disposition = b""
        callbacks: dict[str, Callable[..., Any]] = {
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": lambda data, start, end: self._out.append((None, data[start:end])),
        }
        self._parser = MultipartParser(boundary.encode(), callbacks)  # type: ignore[arg-type]  # a TypedDict of these

    def feed(self, chunk: bytes) -> list[tuple[Part | None, bytes]]:
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise Problem(400, f"malformed form: {str(error)[:200]}") from error
        out, self._out = self._out, []
        return out

    def check_end(self) -> None:
        if self._parser.state != MultipartState.END:
            raise Problem(400, "the form ended before its final boundary: retry")

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _on_headers(self) -> None:
        header = Message()
        header["content-disposition"] = self._disposition.decode("utf-8", "replace")
        self._disposition = b""
        name = _get_parameter(header, "content-disposition", "name")
        if header.get_content_disposition() != "form-data" or not isinstance(name, str) or not name:
            raise Problem(400, "a part of the form has no name")
        is_file = _get_parameter(header, "content-disposition", "filename") is not None
        self._out.append(((name, is_file), b""))
