"""PNG without a decoder: checksums, completeness of the pixel data, and the chunks that affect the display."""

import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from media.containers import ContainerError, Data, ImageScan, Piece, check_parts, open_pieces

Chunk = tuple[bytes, int, int]  # type, start, end

_KNOWN_CRITICAL: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_ANIMATION: Final = frozenset({b"acTL", b"fcTL", b"fdAT"})
_DECODED: Final = _KNOWN_CRITICAL | _ANIMATION | {b"eXIf"}  # others are parsed here: tRNS, iCCP, cICP, gAMA
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
_GREY, _RGB, _PALETTE = 0, 2, 3
_ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MAX_PROFILE_BYTES: Final = 16 * 2**20
_STEP_BYTES: Final = 1 << 18


def iterate_chunks(data: Data) -> Iterator[Chunk]:
    """Yield the type, start and end of each chunk; the last one may extend beyond the data."""
    offset = 8
    while offset + 12 <= len(data):
        end = offset + 12 + int.from_bytes(data[offset : offset + 4], "big")
        yield data[offset + 4 : offset + 8], offset, end
        offset = end


def scan_png(data: Data) -> ImageScan:
    """Walk a PNG and inflate its pixels; raises ContainerError if one is missing or a checksum of pixels is wrong."""
    notes: list[str] = []
    chunks = _list_valid_chunks(data, notes)
    header = data[16:29]
    if not chunks or chunks[0][0] != b"IHDR" or header[8] not in _DEPTHS.get(header[9], ()) or any(header[10:12]):
        raise ContainerError("damaged: no valid header")
    _check_order(chunks, header[9])
    scan = _build_scan(chunks, header, notes)
    _parse_colors(data, {kind: (start + 8, end - 4) for kind, start, end in reversed(chunks)}, scan)
    return scan


def _list_valid_chunks(data: Data, notes: list[str]) -> list[Chunk]:
    chunks: list[Chunk] = []
    with memoryview(data) as view:
        for kind, start, end in iterate_chunks(data):
            if end > len(data):
                break
            name = kind.decode("latin-1") if kind.isalpha() else kind.hex()
            is_valid = zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
            if not kind[0] & 0x20 and kind not in _KNOWN_CRITICAL:
                raise ContainerError(f"damaged: chunk {name} is unknown and not optional")
            if kind == b"acTL" and end - start != 20:
                notes.append("animation control (acTL) unreadable")
            elif is_valid:
                chunks.append((kind, start, end))
            elif kind in _KNOWN_CRITICAL | _ANIMATION:
                raise ContainerError(f"damaged: the checksum of chunk {name} at byte {start} is wrong")
            else:
                notes.append(f"chunk {name} with a wrong checksum ignored")
            check_parts(len(chunks) + len(notes))
            if kind == b"IEND":
                return chunks
    raise ContainerError("truncated: its end is missing")


def _check_order(chunks: list[Chunk], color_type: int) -> None:
    kinds = [kind for kind, _, _ in chunks]
    groups = sum(kind == b"IDAT" for kind, _ in itertools.groupby(kinds))
    if groups != 1:
        raise ContainerError("damaged: its pixels are interrupted" if groups else "damaged: it has no pixels")
    if color_type == _PALETTE and b"PLTE" not in kinds[: kinds.index(b"IDAT")]:
        raise ContainerError("damaged: it has no palette")


def _build_scan(chunks: list[Chunk], header: bytes, notes: list[str]) -> ImageScan:
    width, height = struct.unpack_from(">II", header)
    kinds = [kind for kind, _, _ in chunks]
    is_animated = b"acTL" in kinds[: kinds.index(b"IDAT")] and b"fcTL" in kinds
    decoded = _DECODED if is_animated else _DECODED - _ANIMATION
    pieces: list[Piece] = [(0, 8), *((start, end) for kind, start, end in chunks if kind in decoded)]
    frames = 1
    if is_animated:
        hidden = 0 if b"fcTL" in kinds[: kinds.index(b"IDAT")] else 1
        frames = max(1, kinds.count(b"fcTL") + hidden)
    return ImageScan(width, height, frames, pieces, notes)


def check_pixels(file: BinaryIO, data: Data, *, is_animated: bool) -> None:
    """Inflate the pixel data of every frame; raises ContainerError if it ends before the last row."""
    header = data[16:29]
    frames = [(header[:8], list[Piece]())]
    for kind, start, end in iterate_chunks(data):
        if kind == b"fcTL" and is_animated and end - start >= 38:
            frames.append((data[start + 12 : start + 20], []))
        elif kind == b"IDAT":
            frames[0][1].append((start + 8, end - 4))
        elif kind == b"fdAT" and is_animated:
            frames[-1][1].append((start + 12, end - 4))
        elif kind == b"IEND":
            break
    for index, (size, parts) in enumerate(frame for frame in frames if frame[1]):
        place = f"the pixels of frame {index}" if len(frames) > 1 else "its pixels"
        expected = _count_bytes(size, header)
        try:
            is_complete = _inflate(open_pieces(file, parts), expected) >= expected
        except zlib.error as error:
            raise ContainerError(f"damaged: {place} cannot be decompressed") from error
        if not is_complete:
            raise ContainerError(f"truncated: {place} end early")


def _count_bytes(size: bytes, header: bytes) -> int:
    """Return the size of the inflated pixel data: a filter byte and the packed samples of each row of each pass."""
    width, height = struct.unpack(">II", size)
    bits = header[8] * _CHANNELS[header[9]]
    passes = _ADAM7 if header[12] else ((0, 0, 1, 1),)
    total = 0
    for x, y, dx, dy in passes:
        columns, rows = max(0, -(-(width - x) // dx)), max(0, -(-(height - y) // dy))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total


def _inflate(stream: BinaryIO, expected: int) -> int:
    """Return how many bytes were inflated, up to `expected`. The checksum at the end of the stream is not read."""
    inflater, total = zlib.decompressobj(-15), 0
    stream.seek(2)  # the header of the stream is checked by the decoder
    while total < expected and not inflater.eof and (packed := inflater.unconsumed_tail or stream.read(_STEP_BYTES)):
        total += len(inflater.decompress(packed, _STEP_BYTES))
    return total if total >= expected or inflater.eof else total + len(inflater.flush())


def _parse_colors(data: Data, chunks: dict[bytes, tuple[int, int]], scan: ImageScan) -> None:
    """Set transparency, colour profile and gamma, by the first chunk of each type."""
    contents = {kind: data[slice(*chunks[kind])] for kind in (b"tRNS", b"cICP", b"iCCP", b"gAMA") if kind in chunks}
    depth, color_type = data[24], data[25]
    if b"tRNS" in contents:
        transparency = _parse_transparency(contents[b"tRNS"], depth, color_type)
        if transparency is None:
            scan.notes.append("transparency (tRNS) unreadable")
        else:
            scan.info["transparency"] = transparency
    if len(cicp := contents.get(b"cICP", b"")) == 4:
        scan.cicp = cicp[0], cicp[1]
    elif b"iCCP" in contents:
        profile = _inflate_profile(contents[b"iCCP"])
        if profile is None:
            scan.notes.append("colour profile unreadable")
        else:
            scan.info["icc_profile"] = profile
    elif b"sRGB" not in chunks and len(gamma := contents.get(b"gAMA", b"")) == 4:
        scan.info["gamma"] = int.from_bytes(gamma, "big") / 100_000


def _parse_transparency(content: bytes, depth: int, color_type: int) -> int | bytes | tuple[int, ...] | None:
    """Return it in units of the decoded samples: 16 bits for 16-bit grey, otherwise 8."""
    if color_type == _PALETTE:
        return content[:256] or None
    samples = [int.from_bytes(content[at : at + 2], "big") for at in range(0, len(content) - 1, 2)]
    if color_type == _GREY and samples:
        return samples[0] if depth == 16 else (samples[0] & ((1 << depth) - 1)) * 255 // ((1 << depth) - 1)
    if color_type == _RGB and len(samples) >= 3:
        return tuple(sample >> 8 if depth == 16 else sample & 0xFF for sample in samples[:3])
    return None


def _inflate_profile(content: bytes) -> bytes | None:
    name, found, packed = content.partition(b"\0")
    if not found or len(name) > 79 or packed[:1] != b"\0":
        return None
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(packed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflater.eof else None
