"""FLAC without a decoder: its last frame shows whether the file is complete."""

import functools
from typing import Final

from media.containers import ContainerError, Data, FileFacts

_STREAMINFO_BYTES: Final = 34
_MAX_FRAME_BYTES: Final = 2**21
_MAX_CANDIDATES: Final = 64
_ID3V1_BYTES: Final = 128
_CRC8: Final = 0x07, 8  # polynomial and bits; of a header or frame with its checksum it is 0
_CRC16: Final = 0x8005, 16
_BLOCK_SIZES: Final = {1: 192, **{n: 576 << n - 2 for n in range(2, 6)}, **{n: 256 << n - 8 for n in range(8, 16)}}


def parse_flac(data: Data) -> FileFacts:
    """Walk the metadata of a FLAC and check its last frame; raises ContainerError if it is incomplete."""
    info, offset = b"", 4
    is_last = False
    while not is_last:
        header = data[offset : offset + 4]
        if len(header) < 4:
            raise ContainerError("truncated: it ends within its metadata")
        is_last, kind, length = bool(header[0] & 0x80), header[0] & 0x7F, int.from_bytes(header[1:], "big")
        if offset == 4:
            info = data[8 : 8 + _STREAMINFO_BYTES]
            if kind or length != _STREAMINFO_BYTES:
                raise ContainerError("damaged: its properties are missing (STREAMINFO)")
        offset += 4 + length
    rate = int.from_bytes(info[10:13], "big") >> 4
    total = int.from_bytes(info[13:18], "big") & 0xF_FFFF_FFFF
    if not rate:
        raise ContainerError("damaged: its sample rate is 0")
    end = _find_end_of_samples(data, offset, info)
    if end < total:
        raise ContainerError(f"truncated: {end} of {total} samples are there")
    return FileFacts((total or end) / rate)


def _find_end_of_samples(data: Data, start: int, info: bytes) -> int:
    """Return the number of samples up to the end of the last frame, whose checksum is that of the last bytes."""
    end = len(data)
    if data[end - _ID3V1_BYTES : end - _ID3V1_BYTES + 3] == b"TAG":
        end -= _ID3V1_BYTES
    first = max(start, end - (int.from_bytes(info[7:10], "big") or _MAX_FRAME_BYTES) - 64)
    window = data[first:end]
    at = len(window)
    for _ in range(_MAX_CANDIDATES):
        at = max(window.rfind(b"\xff\xf8", 0, at), window.rfind(b"\xff\xf9", 0, at))
        if at < 0:
            break
        samples = _parse_frame_header(window[at : at + 16], int.from_bytes(info[:2], "big"))
        if samples is not None and _compute_crc(window[at:], *_CRC16) == 0:
            return samples
    raise ContainerError("truncated: its last frame is incomplete")


def _parse_frame_header(header: bytes, fixed_block: int) -> int | None:
    """Return the number of samples up to the end of this frame; None if the bytes are no frame header."""
    if len(header) < 6 or header[3] & 1:
        return None
    length = 1 if header[4] < 0x80 else 8 - (header[4] ^ 0xFF).bit_length()
    if not length or length > 7:
        return None
    number = header[4] if length == 1 else header[4] & ((1 << 7 - length) - 1)
    for byte in header[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    code, offset = header[2] >> 4, 4 + length
    extra = {6: 1, 7: 2}.get(code, 0)
    block = int.from_bytes(header[offset : offset + extra], "big") + 1 if extra else _BLOCK_SIZES.get(code, 0)
    offset += extra + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if not block or _compute_crc(header[: offset + 1], *_CRC8):
        return None
    return (number if header[1] & 1 else number * fixed_block) + block


def _compute_crc(data: bytes, polynomial: int, bits: int) -> int:
    """Return the checksum with the highest bit first, which the standard library does not have."""
    table = _build_crc_table(polynomial, bits)
    crc, mask, shift = 0, (1 << bits) - 1, bits - 8
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> shift ^ byte]
    return crc


@functools.cache
def _build_crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for remainder in range(0, 1 << bits, 1 << bits - 8):
        for _ in range(8):
            remainder = (remainder << 1) ^ (polynomial | 1 << bits if remainder >> bits - 1 else 0)
        table.append(remainder)
    return table
