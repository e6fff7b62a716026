"""GIF without a decoder: its blocks, to the trailer."""

from typing import Final

from media.containers import ContainerError, Data, ImageScan, check_parts

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_CONTROL: Final = 0xF9  # delay and transparent colour of the next frame
_LOOPS: Final = (b"\x0bNETSCAPE2.0", b"\x0bANIMEXTS1.0")


def scan_gif(data: Data) -> ImageScan:
    """Walk a GIF to its trailer, or to the end of its last frame; raises ContainerError if a block is incomplete."""
    if len(data) < 13:
        raise ContainerError("truncated: its header is incomplete")
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    offset = 13 + _color_table_bytes(data[10])
    scan = ImageScan(width, height, 0, [(0, offset)])
    has_control = False
    while offset < len(data) and data[offset] in (_EXTENSION, _IMAGE):
        end = _find_block_end(data, offset)
        if data[offset] == _IMAGE:
            _add_frame(data, offset, scan)
            has_control = False
        else:
            has_control = has_control or data[offset + 1] == _CONTROL
        if _is_decoded(data, offset):
            scan.pieces.append((offset, end))
            check_parts(len(scan.pieces))
        offset = end
    if not scan.frames or (has_control and data[offset : offset + 1] != bytes([_TRAILER])):
        raise ContainerError("truncated: a frame is missing")
    if offset >= len(data):
        scan.notes.append("the GIF has no end marker")
    elif data[offset] != _TRAILER:
        scan.notes.append(f"unknown data behind the last frame, at byte {offset}")
    scan.pieces.append(bytes([_TRAILER]))
    return scan


def _add_frame(data: Data, offset: int, scan: ImageScan) -> None:
    left, top, width, height = (int.from_bytes(data[at : at + 2], "little") for at in range(offset + 1, offset + 9, 2))
    scan.frames += 1
    scan.width_px, scan.height_px = max(scan.width_px, left + width), max(scan.height_px, top + height)


def _is_decoded(data: Data, offset: int) -> bool:
    return data[offset] == _IMAGE or data[offset + 1] == _CONTROL or data[offset + 2 : offset + 14] in _LOOPS


def _find_block_end(data: Data, offset: int) -> int:
    """Return the offset after the sub-blocks of a block; raises ContainerError if the file ends before."""
    if data[offset] == _EXTENSION:
        offset += 2
    else:
        offset += 11 + _color_table_bytes(data[offset + 9]) if offset + 10 <= len(data) else len(data)
    while offset < len(data):
        size = data[offset]
        offset += 1 + size
        if not size:
            return offset
    raise ContainerError("truncated: a block is incomplete")


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
