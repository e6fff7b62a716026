"""
A separate program: decodes the first frame of the video on standard input to a PNG on standard output.

It is started by file path and imports little of moorage: if a hostile file crashes the decoder or exhausts its memory,
only this process ends. Exit status 0 and a PNG, 3 and the reason as text, or 64 and more if this
machine failed.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

from media.image_scan import open_pieces

FAILED: Final = 3
LOCAL_ERROR: Final = 64  # plus the errno of a failure of this machine
# As in moorage/local_errors.py, but for EFBIG and ENOMEM: the file exceeded a limit that is set below.
LOCAL_ERRNOS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
_PR_SET_PDEATHSIG: Final = 1
_MAX_PNG_BYTES: Final = 32 * 2**20
COLORS_KEY: Final = "colors"  # of the PNG: primaries and transfer function by ITU-T H.273
_ALPHA_DECODERS: Final = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class PosterFailed(Exception):
    """No frame is returned; the message states the reason."""


def main(format_name: str, square_px: int, max_pixels: int, memory_bytes: int, seconds: int) -> int:
    try:
        limit_resources(memory_bytes, seconds)
        write_first_frame(format_name, square_px, max_pixels)
    except PosterFailed as error:
        return _write_reason(str(error))
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        # Exactly OSError: PyAV derives its own errors from it, and reports a damaged file as EIO.
        if type(error) is OSError and error.errno in LOCAL_ERRNOS:
            return LOCAL_ERROR + error.errno
        return _write_reason(f"no frame could be decoded ({type(error).__name__})")
    return 0


def _write_reason(reason: str) -> int:
    try:
        os.write(1, reason.encode())
    except OSError as error:
        return LOCAL_ERROR + (error.errno or 0)
    return FAILED


def limit_resources(
    memory_bytes: int, seconds: int, max_file_bytes: int = _MAX_PNG_BYTES, clock_seconds: int | None = None
) -> None:
    """Limit memory, CPU time and file size of this process. Call it before the decoder is loaded."""
    os.nice(10)  # the parent serves requests meanwhile
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")  # the kernel ends this process first if memory runs out
    if sys.platform == "linux":  # not enforced elsewhere; the time limits below remain
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the lock for one decoder ends with the parent
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))  # SIGXCPU; at the second one SIGKILL
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(clock_seconds or seconds + 1)


def write_first_frame(format_name: str, square_px: int, max_pixels: int) -> None:
    import av  # after the limits, which include the loading
    from PIL import Image, PngImagePlugin

    shared = open(0, "rb", closefd=False)  # noqa: SIM115 (the parent continues to read the same open file)
    source = open_pieces(shared, [(0, os.fstat(0).st_size)])
    # Fixed format and no protocols: a playlist could name files and hosts.
    with av.open(source, "r", format=format_name, options={"protocol_whitelist": ""}) as container:
        stream = container.streams.video[0]
        _check_size(stream.codec_context.width, stream.codec_context.height, max_pixels)
        stream.thread_type = "NONE"
        frame: Any = next(_decode(container, stream), None)
        if frame is None:
            raise PosterFailed("no frame could be decoded")
        _check_size(frame.width, frame.height, max_pixels)
        image = _to_image(frame)
        colors = f"{int(frame.color_primaries)},{int(frame.color_trc)}"
        rotation = frame.rotation
    image.thumbnail((square_px, square_px), Image.Resampling.LANCZOS)
    if rotation in (90, 180, 270, -90, -180, -270):  # an invalid display matrix results in any number
        image = image.rotate(rotation, expand=True)
    text = PngImagePlugin.PngInfo()
    text.add_text(COLORS_KEY, colors)
    with open(1, "wb", closefd=False) as out:
        image.save(out, "PNG", compress_level=1, pnginfo=text)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PosterFailed(f"{width} x {height} pixels are too many")


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
    from PIL import Image

    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_image()
    plane = frame.reformat(format="rgba").planes[0]
    return Image.frombuffer("RGBA", (frame.width, frame.height), bytes(plane), "raw", "RGBA", plane.line_size, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *(int(value) for value in sys.argv[2:6])))
