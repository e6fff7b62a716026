"""
A separate program: decodes the first frame of the video on standard input to a PNG on standard output.

It is started by file path and imports no other module of moorage: if a hostile file crashes the decoder or exhausts its
memory, only this process ends. Exit status 0 and a PNG, 3 and the reason as text, or 64 and more if this
machine failed.
"""

import contextlib
import errno
import io
import os
import resource
import signal
import sys
from typing import Any, Final

FAILED: Final = 3
LOCAL_ERROR: Final = 64  # plus the errno of a failure of this machine
# As in moorage/local_errors.py, but for EFBIG and ENOMEM: the file exceeded a limit that is set below.
LOCAL_ERRNOS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
_MAX_PNG_BYTES: Final = 32 * 2**20


class SharedFile(io.RawIOBase):
    """Standard input with its own position, since the parent continues to read the same open file."""

    def __init__(self) -> None:
        self._offset, self._size = 0, os.fstat(0).st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(0, len(buffer), self._offset)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        self._offset = max(0, base + offset)
        return self._offset


def main(format_name: str, square_px: int, max_pixels: int, memory_bytes: int, seconds: int) -> int:
    try:
        limit_resources(memory_bytes, seconds)
        write_first_frame(format_name, square_px, max_pixels)
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        # Exactly OSError: PyAV derives its own errors from it, and reports a damaged file as EIO.
        if type(error) is OSError and error.errno in LOCAL_ERRNOS:
            return LOCAL_ERROR + error.errno
        return _write_reason(f"{type(error).__name__}: {error}"[:500])
    return 0


def _write_reason(reason: str) -> int:
    try:
        os.write(1, reason.encode())
    except OSError as error:
        return LOCAL_ERROR + (error.errno or 0)
    return FAILED


def limit_resources(memory_bytes: int, seconds: int, max_file_bytes: int = _MAX_PNG_BYTES) -> None:
    """Limit memory, CPU time and file size of this process. Call it before the decoder is loaded."""
    os.nice(10)  # the parent serves requests meanwhile
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")  # the kernel ends this process first if memory runs out
    if sys.platform == "linux":  # not enforced elsewhere; the time limits below remain
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(seconds + 1)  # also ends it if the parent was killed


def write_first_frame(format_name: str, square_px: int, max_pixels: int) -> None:
    import av  # after the limits, which include the loading
    from PIL import Image

    # Fixed format and no protocols: a playlist could name files and hosts.
    with av.open(SharedFile(), "r", format=format_name, options={"protocol_whitelist": ""}) as container:
        stream = container.streams.video[0]
        if stream.codec_context.width * stream.codec_context.height > max_pixels:
            raise ValueError(f"{stream.codec_context.width} x {stream.codec_context.height} pixels are too many")
        stream.thread_type = "NONE"
        frame: Any = next(iter(container.decode(stream)), None)
        if frame is None:
            raise ValueError("no frame could be decoded")
        if frame.width * frame.height > max_pixels:
            raise ValueError(f"{frame.width} x {frame.height} pixels are too many")
        image = frame.to_image()
        rotation = frame.rotation
    image.thumbnail((square_px, square_px), Image.Resampling.LANCZOS)
    if rotation in (90, 180, 270, -90, -180, -270):  # an invalid display matrix results in any number
        image = image.rotate(rotation, expand=True)
    with open(1, "wb", closefd=False) as out:
        image.save(out, "PNG", compress_level=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *(int(value) for value in sys.argv[2:6])))
