"""Posters of videos, decoded in a separate process."""

import importlib.util
import os
from typing import BinaryIO, Final

from PIL import Image

from media import confined, poster_process, thumbnails
from media.limits import Limits
from media.sniff import FileFormat
from moorage.local_errors import build_failure, find_local_failure, open_temporary_file
from moorage.model import Thumbnail

_DEMUXERS: Final = {"mp4": "mov", "mov": "mov", "webm": "matroska", "mkv": "matroska"}
_EXTRA_SECONDS: Final = 2.0


class PosterError(Exception):
    """No poster was created; the message states the reason. The video is kept without it."""


def extract_poster(file: BinaryIO, kind: FileFormat, limits: Limits) -> Thumbnail:
    """
    Return the first frame as a thumbnail. Raises LocalFailure if this machine prevented it, for any other reason
    PosterError, also if the extra `video` is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise PosterError("no video decoder is installed (the extra `video`)")
    with open_temporary_file() as out:
        status = _run_decoder(file, out, kind, limits)
        out.seek(0)
        if status == poster_process.FAILED:
            raise PosterError(out.read(500).decode("utf-8", "replace"))
        if status >= poster_process.LOCAL_ERROR:
            code = status - poster_process.LOCAL_ERROR
            raise build_failure("the decoder", OSError(code, os.strerror(code)))
        if status:
            end = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
            raise PosterError(f"the decoder {end}")
        return _render_thumbnail(out, limits)


def _run_decoder(file: BinaryIO, out: BinaryIO, kind: FileFormat, limits: Limits) -> int:
    numbers = (limits.thumbnail_px, limits.image_max_pixels, limits.decoder_memory_bytes, int(limits.poster_seconds))
    status = confined.run_decoder(
        poster_process.__file__,
        [_DEMUXERS[kind.name], *numbers],
        file,
        out=out,
        timeout_seconds=limits.poster_seconds + _EXTRA_SECONDS,
        alone=not limits.is_confined,
    ).status
    if status is None:
        raise PosterError(f"the decoder took longer than {limits.poster_seconds:g} s")
    return status


def _render_thumbnail(out: BinaryIO, limits: Limits) -> Thumbnail:
    try:
        with Image.open(out, formats=["PNG"]) as image:
            return thumbnails.render_thumbnail(image, limits, cicp=_parse_colors(image))
    except (*thumbnails.METADATA_ERRORS, Image.DecompressionBombError) as error:
        if failure := find_local_failure(error):
            raise failure from error
        raise PosterError("the decoder returned no image") from error


def _parse_colors(image: Image.Image) -> tuple[int, int] | None:
    primaries, found, transfer = str(image.info.get(poster_process.COLORS_KEY, "")).partition(",")
    return (int(primaries), int(transfer)) if found else None
