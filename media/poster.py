"""Posters of videos: the first frame, decoded in a separate process."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Final

from PIL import Image

from media import confined, thumbnails
from media.limits import Limits
from media.sniff import FileFormat
from moorage.errors import InvalidMedia, LocalFailure, Transient
from moorage.local_errors import LOCAL_ERRNOS
from moorage.model import Thumbnail

_DEMUXERS: Final = {"mp4": "mov", "mov": "mov", "webm": "matroska", "mkv": "matroska"}
_ALPHA_DECODERS: Final = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class PosterError(Exception):
    """No poster was created; the message states the reason. The video is kept without it."""


def extract_poster(file: BinaryIO, kind: FileFormat, limits: Limits) -> Thumbnail:
    """
    Return the first frame as a thumbnail. Raises LocalFailure if this machine prevented it, for any other reason
    PosterError, also if the extra `video` is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise PosterError("no video decoder is installed (the extra `video`)")
    seconds = limits.poster_seconds
    limits = replace(limits, decoder_cpu_seconds=seconds, decoder_seconds=seconds)
    try:
        result = confined.run_decoder({"demuxer": _DEMUXERS[kind.name]}, file, limits, {})
    except LocalFailure:
        raise
    except (InvalidMedia, Transient) as error:
        raise PosterError(str(error)) from error
    return confined.decode_thumbnail(result["thumbnail"])


def render_poster(file: BinaryIO, demuxer: str, limits: Limits) -> Thumbnail:
    """Decode the first frame in this process. Raises PosterError, and OSError if this machine failed."""
    try:
        image, cicp = _decode_first_frame(file, demuxer, limits)
        return thumbnails.render_thumbnail(image, limits, cicp=cicp)
    except PosterError:
        raise
    except Exception as error:  # the one call into a decoder, which raises a dozen types
        # Exactly OSError: PyAV derives its own errors from it, and reports a damaged file as EIO.
        if type(error) is OSError and error.errno in LOCAL_ERRNOS:
            raise
        raise PosterError(f"no frame could be decoded ({type(error).__name__})") from error


def _decode_first_frame(file: BinaryIO, demuxer: str, limits: Limits) -> tuple[Image.Image, tuple[int, int]]:
    """Return the first frame, upright, and its colour primaries and transfer function by ITU-T H.273."""
    import av  # only in the decoder process, after its limits

    # Fixed format and no protocols: a playlist could name files and hosts.
    with av.open(file, "r", format=demuxer, options={"protocol_whitelist": ""}) as container:
        stream = container.streams.video[0]
        _check_size(stream.codec_context, limits)
        stream.thread_type = "NONE"
        frame: Any = next(_decode(container, stream), None)
        if frame is None:
            raise PosterError("no frame could be decoded")
        _check_size(frame, limits)
        image = _to_image(frame)
    image.thumbnail((limits.thumbnail_px, limits.thumbnail_px), Image.Resampling.LANCZOS)
    if frame.rotation in (90, 180, 270, -90, -180, -270):  # an invalid display matrix results in any number
        image = image.rotate(frame.rotation, expand=True)
    return image, (int(frame.color_primaries), int(frame.color_trc))


def _check_size(frame: Any, limits: Limits) -> None:
    if frame.width * frame.height > limits.image_max_pixels:
        raise PosterError(f"{frame.width} x {frame.height} pixels are too many")


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """Yield frames. FFmpeg's own decoders of VP8 and VP9 leave out the alpha channel, those of libvpx do not."""
    import av

    context: Any = None
    for packet in container.demux(stream):
        if context is None and packet.size and packet.has_sidedata("matroska_block_additional"):
            context = av.CodecContext.create(_ALPHA_DECODERS.get(stream.codec.name, stream.codec.name), "r")
        context = context or stream.codec_context
        yield from context.decode(packet)


def _to_image(frame: Any) -> Any:
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_image()
    plane = frame.reformat(format="rgba").planes[0]
    return Image.frombuffer("RGBA", (frame.width, frame.height), bytes(plane), "raw", "RGBA", plane.line_size, 1)
