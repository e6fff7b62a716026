"""ZIP archives and GLB models: checks that the file is complete. Nothing is unpacked."""

from typing import Final

from media import texts
from media.containers import ContainerError, Data, FileFacts

_MAX_COMMENT: Final = 65_535
_END, _END64, _LOCATOR, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
_MAX_ENTRIES: Final = 1_000_000
_JSON, _BIN = b"JSON", b"BIN\0"


def parse_zip(data: Data) -> FileFacts:
    """Walk the directory of a ZIP, and find each of its files; raises ContainerError if one is missing."""
    first = max(0, len(data) - _MAX_COMMENT - 22)
    end = data.rfind(_END, first)
    while end >= 0 and not _fits(data, *_read_end(data, end), end):  # it may be a part of the comment
        end = data.rfind(_END, first, end)
    if end < 0:
        raise ContainerError("truncated or damaged: its directory is missing")
    count, _, start = _read_end(data, end)
    offset = start
    for _ in range(count):
        offset = _check_entry(data, offset, start)
    rest = len(data) - end - 22 - _read(data, end + 20, 2)
    if rest < 0:
        raise ContainerError("truncated: its comment is incomplete")
    return FileFacts(note=f"{rest} bytes behind the archive ignored" if rest else None)


def _read(data: Data, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _read_end(data: Data, end: int) -> tuple[int, int, int]:
    """Return number of entries, bytes and start of the directory."""
    locator = end - 20
    if data[locator : locator + 4] == _LOCATOR:
        record = _read(data, locator + 8, 8)
        if data[record : record + 4] == _END64:
            return _read(data, record + 32, 8), _read(data, record + 40, 8), _read(data, record + 48, 8)
    return _read(data, end + 10, 2), _read(data, end + 12, 4), _read(data, end + 16, 4)


def _fits(data: Data, count: int, length: int, start: int, end: int) -> bool:
    return 0 < count <= _MAX_ENTRIES and start + length <= end and data[start : start + 4] == _ENTRY


def _check_entry(data: Data, offset: int, directory: int) -> int:
    """Compare an entry of the directory with the file's own header; returns where the next entry starts."""
    if data[offset : offset + 4] != _ENTRY:
        raise ContainerError(f"damaged: no entry of its directory at byte {offset}")
    name_length, extra_length, comment_length = (_read(data, offset + n, 2) for n in (28, 30, 32))
    name_end = offset + 46 + name_length
    extra = data[name_end : name_end + extra_length]
    packed, start = _read_place(data, offset, extra)
    is_same = (
        data[start : start + 4] == _LOCAL
        and data[start + 30 : start + 30 + name_length] == (data[offset + 46 : name_end])
    )
    if not is_same or start + 30 + name_length + _read(data, start + 28, 2) + packed > directory:
        raise ContainerError(f"damaged: a file of the archive is not at byte {start}")
    return name_end + extra_length + comment_length


def _read_place(data: Data, offset: int, extra: bytes) -> tuple[int, int]:
    """Return packed size and start of a file; the ZIP64 fields replace those that are too small."""
    unpacked, packed, start = _read(data, offset + 24, 4), _read(data, offset + 20, 4), _read(data, offset + 42, 4)
    at = 0
    while at + 4 <= len(extra):
        kind, length = _read(extra, at, 2), _read(extra, at + 2, 2)
        if kind == 1:
            field = at + 4 + (8 if unpacked == 0xFFFF_FFFF else 0)
            if packed == 0xFFFF_FFFF:
                packed, field = _read(extra, field, 8), field + 8
            if start == 0xFFFF_FFFF:
                start = _read(extra, field, 8)
            break
        at += 4 + length
    return packed, start


def parse_glb(data: Data) -> FileFacts:
    """Walk the chunks of a binary glTF 2 to its stated end; raises ContainerError if it is incomplete."""
    version, end = _read(data, 4, 4), _read(data, 8, 4)
    if version != 2:
        raise ContainerError(f"of an unknown version ({version})")
    if not 20 < end <= len(data):
        raise ContainerError(f"truncated or damaged: {len(data)} of {end} bytes are there")
    offset = 12
    while offset < end:
        length, kind = _read(data, offset, 4), data[offset + 4 : offset + 8]
        if offset + 8 + length > end or (offset == 12) != (kind == _JSON):
            raise ContainerError(f"damaged: no chunk at byte {offset}")
        if kind == _JSON:
            texts.check_json(data, offset + 8, offset + 8 + length)
        offset += 8 + length
    rest = len(data) - end
    return FileFacts(note=f"{rest} bytes behind the model ignored" if rest else None)
