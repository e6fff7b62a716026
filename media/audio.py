"""WAV and MP3 without a decoder: checks that the file is complete, and measures how long it plays."""

from typing import Final

from media.containers import ContainerError, Data, FileFacts

_STREAMED: Final = 0x7FFF_0000  # from here on, or 0: stated by programs that stream and never return to the header
_SLACK: Final = 8  # by which some programs miscount the size of the file
_V1_KBIT: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_V2_KBIT: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MIN_FRAMES: Final = 3  # what has fewer, and other bytes behind them, is no MP3
_TRAILERS: Final = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")  # of metadata behind the last frame


def parse_wav(data: Data) -> FileFacts:
    """Walk a WAV (RIFF or RF64); raises ContainerError if it is incomplete."""
    size = len(data)
    stated, long_sizes = int.from_bytes(data[4:8], "little"), {}
    is_streamed = not 0 < stated < _STREAMED
    if not is_streamed and stated + 8 > size + _SLACK:
        raise ContainerError(f"truncated: {size} of {stated + 8} bytes are there")
    byte_rate, offset = 0, 12
    while offset + 8 <= size:
        kind, length = data[offset : offset + 4], int.from_bytes(data[offset + 4 : offset + 8], "little")
        start = offset + 8
        if not all(0x20 <= byte < 0x7F for byte in kind):
            break
        if kind == b"ds64":
            long_sizes[b"data"] = int.from_bytes(data[start + 8 : start + 16], "little")
        elif kind == b"fmt ":
            byte_rate = _read_byte_rate(data[start : start + 16])
        elif kind == b"data":
            return _read_samples(data, start, long_sizes.get(kind, length), byte_rate, is_streamed=is_streamed)
        offset = start + length + length % 2
    raise ContainerError("truncated: it has no samples (data)")


def _read_byte_rate(fmt: bytes) -> int:
    tag, channels = int.from_bytes(fmt[:2], "little"), int.from_bytes(fmt[2:4], "little")
    rate, byte_rate = int.from_bytes(fmt[4:8], "little"), int.from_bytes(fmt[8:12], "little")
    if len(fmt) < 16 or not tag or not channels or not rate or not byte_rate:
        raise ContainerError("damaged: its sample format is not stated (fmt)")
    return byte_rate


def _read_samples(data: Data, start: int, length: int, byte_rate: int, *, is_streamed: bool) -> FileFacts:
    if not byte_rate:
        raise ContainerError("damaged: its sample format is not stated (fmt)")
    there = len(data) - start
    if is_streamed and there and (not length or length >= max(_STREAMED, there)):
        return FileFacts(there / byte_rate, "its header does not state how long it is")
    if not length or length > there:
        raise ContainerError(f"truncated: {there} of {length} bytes of samples are there")
    return FileFacts(length / byte_rate)


def parse_mp3(data: Data) -> FileFacts:
    """Walk the frames of an MP3; raises ContainerError if the last is incomplete, or less is there than stated."""
    size, offset = len(data), _skip_tag(data, 0)
    start, frames, seconds, stated = offset, 0, 0.0, 0
    while offset < size:
        frame = parse_mp3_frame(data[offset : offset + 4])
        if frame is None:
            after = _skip_tag(data, offset) if frames else offset  # parts that were joined have a tag each
            if after == offset:
                break
            offset = after
            continue
        length, duration = frame
        if not frames:
            stated = start + _read_stated_bytes(data, offset)
        if offset + length > size and not start < stated <= size:
            raise ContainerError(f"truncated: its last frame has {size - offset} of {length} bytes")
        frames, seconds, offset = frames + 1, seconds + duration, min(size, offset + length)
    if not frames:
        raise ContainerError(f"damaged: no frame at byte {start}")
    if stated > size:
        raise ContainerError(f"truncated: {size} of {stated} bytes are there")
    is_known = offset == size or data[offset : offset + 16].startswith(_TRAILERS)
    if not is_known and frames < _MIN_FRAMES:
        raise ContainerError(f"damaged: no frame at byte {offset}")
    return FileFacts(seconds, None if is_known else f"{size - offset} bytes behind the last frame ignored")


def _skip_tag(data: Data, offset: int) -> int:
    """Return where the ID3v2 tags at an offset end."""
    while data[offset : offset + 3] == b"ID3" and (header := data[offset : offset + 10]) and len(header) == 10:
        size = 0
        for byte in header[6:]:
            size = size << 7 | byte & 0x7F
        offset += 10 + size + (10 if header[5] & 0x10 else 0)
    return offset


def parse_mp3_frame(header: bytes) -> tuple[int, float] | None:
    """Return bytes and seconds of a frame of layer III; None if this is no header of one."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, bit_rate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bit_rate in (0, 15) or rate == 3:
        return None
    hertz, samples = _RATES[version][rate], 1152 if version == 3 else 576
    kbit = (_V1_KBIT if version == 3 else _V2_KBIT)[bit_rate]
    return samples // 8 * kbit * 1000 // hertz + (header[2] >> 1 & 1), samples / hertz


def _read_stated_bytes(data: Data, offset: int) -> int:
    """Return the bytes of all frames, as the first one states them (Xing); 0 if it does not."""
    frame = data[offset : offset + 64]
    is_mono, is_v1 = frame[3] >> 6 == 3, frame[1] >> 3 & 3 == 3
    tag = frame[4 + ((17 if is_mono else 32) if is_v1 else (9 if is_mono else 17)) :]
    if len(tag) < 16 or tag[:4] not in (b"Xing", b"Info") or not tag[7] & 2:
        return 0
    start = 12 if tag[7] & 1 else 8
    return int.from_bytes(tag[start : start + 4], "big")
