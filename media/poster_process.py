"""
A program of its own that decodes the first frame of the video on standard input into a PNG on standard output.

It is started as a file and imports nothing of the house: when a hostile file takes the decoder down, or makes it eat
memory, this process ends and nothing else. Exit 0 and a PNG, or exit 3 and the reason as text.
"""

import contextlib
import io
import os
import resource
import signal
import sys
from typing import Any, Final

FAILED: Final = 3
_MAX_PNG_BYTES: Final = 32 * 2**20


class SharedFile(io.RawIOBase):
    """Standard input with a position of its own: the parent goes on reading the same open file afterwards."""

    def __init__(self) -> None:
        self._at, self._size = 0, os.fstat(0).st_size

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be moved in."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on."""
        data = os.pread(0, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return the new position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at


def main(format_name: str, square_px: int, max_pixels: int, memory_bytes: int, seconds: int) -> int:
    """Write the poster and return the exit status."""
    try:
        limit_resources(memory_bytes, seconds)
        write_first_frame(format_name, square_px, max_pixels)
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        os.write(1, f"{type(error).__name__}: {error}"[:500].encode())
        return FAILED
    return 0


def limit_resources(memory_bytes: int, seconds: int, max_file_bytes: int = _MAX_PNG_BYTES) -> None:
    """Give this process its limits before it loads the decoder."""
    os.nice(10)  # what it was started by answers others meanwhile
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")  # where memory runs out, this process is the one to end
    if sys.platform == "linux":  # elsewhere the kernel does not hold it; the clocks below remain
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(seconds + 1)  # ends it also when the parent was killed


def write_first_frame(format_name: str, square_px: int, max_pixels: int) -> None:
    """Decode, turn upright and shrink the first frame."""
    import av  # after the limits: loading the decoder is part of what they hold
    from PIL import Image

    # The format is forced and no protocol allowed: a playlist inside could name files and hosts.
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
        turn = frame.rotation
    image.thumbnail((square_px, square_px), Image.Resampling.LANCZOS)
    if turn in (90, 180, 270, -90, -180, -270):  # a rubbish display matrix gives any number
        image = image.rotate(turn, expand=True)
    with open(1, "wb", closefd=False) as out:
        image.save(out, "PNG", compress_level=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *(int(value) for value in sys.argv[2:6])))
