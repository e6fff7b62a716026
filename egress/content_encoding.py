"""Bodies that a server compressed although `identity` was requested: decoded piece by piece."""

import zlib
from collections.abc import Iterator
from typing import Final

from media import sniff
from moorage.errors import DownloadInterrupted

_PIECE_BYTES: Final = 128 * 1024  # decoded at once: the caller's limit ends a body that decompresses to any size
_GZIP: Final = ("gzip", "x-gzip")
# Compressions that are not decoded here. Every other name ("aws-chunked", "utf-8", "none") names no compression.
_UNSUPPORTED: Final = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
_MAX_ENCODINGS: Final = 4


class _InflateReader:
    """gzip (with several members) or deflate (with or without a zlib header); a body that is neither is unchanged."""

    def __init__(self, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._head: bytes | None = b""  # until the form is known
        self._inflate: zlib._Decompress | None = None  # None: the header is wrong, the body is not compressed

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._head is None:
            yield from self._decode(data)
            return
        self._head += data
        if len(self._head) >= sniff.HEAD_BYTES:
            yield from self._start()

    def finish(self) -> Iterator[bytes]:
        if self._head is not None:
            yield from self._start()
        if self._inflate is not None and not self._inflate.eof:
            raise DownloadInterrupted("the encoded body is incomplete")

    def _start(self) -> Iterator[bytes]:
        data, self._head = self._head or b"", None
        is_media = not data or sniff.detect_format(data) is not None  # the header is wrong: browsers would fail here
        if data.startswith(b"\x1f\x8b") if self._is_gzip else not is_media:
            self._inflate = zlib.decompressobj(_choose_window(data, self._is_gzip))
        yield from self._decode(data)

    def _decode(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            if data:
                yield data
            return
        while data:
            if self._inflate.eof:
                if not (self._is_gzip and data.startswith(b"\x1f")):
                    return  # bytes behind the end, as padding
                self._inflate = zlib.decompressobj(31)
            try:
                decoded = self._inflate.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise DownloadInterrupted(f"the encoded body is damaged: {error}") from error
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if decoded:
                yield decoded


class ContentReader:
    """Decodes a body by its Content-Encoding; raises DownloadInterrupted if it is damaged or cannot be decoded here."""

    def __init__(self, content_encoding: str) -> None:
        names = [name.strip().lower() for name in content_encoding.split(",")]
        if refused := sorted(_UNSUPPORTED.intersection(names)):
            raise DownloadInterrupted(f"the body is encoded as {', '.join(refused)}, which was not requested")
        applied = [name for name in names if name in (*_GZIP, "deflate")]
        if len(applied) > _MAX_ENCODINGS:
            raise DownloadInterrupted(f"the body is encoded {len(applied)} times, more than {_MAX_ENCODINGS}")
        self._decoders: list[_InflateReader] = [_InflateReader(name in _GZIP) for name in reversed(applied)]

    @property
    def is_identity(self) -> bool:
        return not self._decoders

    def decode(self, data: bytes) -> Iterator[bytes]:
        yield from self._decode_from(0, iter((data,)))

    def finish(self) -> Iterator[bytes]:
        """Return what the decoders still hold; raises DownloadInterrupted if the encoded body has no end."""
        for index, decoder in enumerate(self._decoders):
            yield from self._decode_from(index + 1, decoder.finish())

    def _decode_from(self, index: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for decoder in self._decoders[index:]:
            pieces = _chain(decoder, pieces)
        return pieces


def _chain(decoder: _InflateReader, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from decoder.decode(piece)


def _choose_window(head: bytes, is_gzip: bool) -> int:
    """Return the window bits by which zlib knows the form: 31 gzip, 15 zlib, -15 no header (RFC 1950, 2.2)."""
    if is_gzip:
        return 31
    has_header = len(head) > 1 and head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0
    return 15 if has_header else -15
