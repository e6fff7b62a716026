"""Bodies that a server compressed although `identity` was requested: decoded piece by piece."""

import itertools
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


def list_compressions(content_encoding: str) -> list[str]:
    """Return the compressions of a body as they were applied; raises DownloadInterrupted if one is not supported."""
    names = [name.strip().lower() for name in content_encoding.split(",")]
    if refused := sorted(_UNSUPPORTED.intersection(names)):
        raise DownloadInterrupted(f"the body is encoded as {', '.join(refused)}, which was not requested")
    applied = [name for name in names if name in (*_GZIP, "deflate")]
    if len(applied) > _MAX_ENCODINGS:
        raise DownloadInterrupted(f"the body is encoded {len(applied)} times, more than {_MAX_ENCODINGS}")
    return applied


def decompress(chunks: Iterator[bytes], compressions: list[str]) -> Iterator[bytes]:
    """Yield the decoded body; raises DownloadInterrupted if it is damaged or has no end."""
    for name in reversed(compressions):
        chunks = _inflate(chunks, is_gzip=name in _GZIP)
    return chunks


def _inflate(chunks: Iterator[bytes], *, is_gzip: bool) -> Iterator[bytes]:
    """Decode gzip (with several members) or deflate; a body that is neither is unchanged: the header is wrong."""
    head = b""
    while len(head) < sniff.HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    chunks = itertools.chain((head,), chunks)
    is_compressed = head.startswith(b"\x1f\x8b") if is_gzip else bool(head) and sniff.detect_format(head) is None
    if not is_compressed:
        yield from chunks
        return
    # By the window bits zlib knows the form: 31 gzip, 15 zlib, -15 no header (RFC 1950, 2.2).
    has_header = len(head) > 1 and head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0
    inflater = zlib.decompressobj(31 if is_gzip else 15 if has_header else -15)
    for data in chunks:
        while data:
            if inflater.eof:
                if not (is_gzip and data.startswith(b"\x1f")):
                    break  # bytes behind the end, as padding
                inflater = zlib.decompressobj(31)
            try:
                piece = inflater.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise DownloadInterrupted(f"the encoded body is damaged: {error}") from error
            if piece:
                yield piece
            data = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
    if not inflater.eof:
        raise DownloadInterrupted("the encoded body is incomplete")
