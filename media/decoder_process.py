"""
A separate program: validates the file on standard input, or renders its poster, or writes it without metadata.

It is started by file path, so that a large or hostile file affects this process within its limits, not the worker or
the server that receives webhooks. Exit status 0, or 3 and the reason; one line of JSON on standard output.
"""

import base64
import contextlib
import ctypes
import errno
import json
import mmap
import os
import resource
import shutil
import signal
import sys
from dataclasses import asdict
from typing import Any, BinaryIO, Final

_FAILED: Final = 3
_OWN_LIMITS: Final = (errno.EFBIG, errno.ENOMEM)  # of this process: exceeded by the file
_PR_SET_PDEATHSIG: Final = 1


def main(request: dict[str, Any]) -> int:
    """
    Write properties and thumbnail of a file, and return the exit status.

    The request has `limits` as for `Limits`, and `max_file_bytes` that this process may write. For a poster it has
    `demuxer`, otherwise `bytes`, `type` and `extension` of the input, and `out`, the file to write to, or None.
    """
    limits = request["limits"]
    limit_resources(
        limits["decoder_memory_bytes"], limits["decoder_cpu_seconds"], limits["decoder_seconds"],
        request["max_file_bytes"],
    )  # fmt: skip
    try:
        result, status = _run(request), 0
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        result, status = _describe_error(error, limits["decoder_memory_bytes"]), _FAILED
    with os.fdopen(1, "wb", closefd=False) as out:
        out.write(json.dumps(result).encode())
    return status


def limit_resources(memory_bytes: int, cpu_seconds: int, clock_seconds: int, max_file_bytes: int) -> None:
    """Limit memory, time and file size of this process. Call it before the decoder is loaded."""
    os.nice(10)  # the parent serves requests meanwhile
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")  # the kernel ends this process first if memory runs out
    if sys.platform == "linux":  # not enforced elsewhere; the time limits below remain
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the lock for one decoder ends with the parent
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))  # SIGXCPU; at the second one SIGKILL
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(clock_seconds)


def _describe_error(error: Exception, memory_bytes: int) -> dict[str, Any]:
    from media.poster import PosterError
    from moorage.errors import MoorageError
    from moorage.local_errors import find_local_failure

    if isinstance(error, PosterError):
        return {"problem": str(error)}
    failure = find_local_failure(error)
    if failure and failure.facts["errno"] not in _OWN_LIMITS:
        return {"errno": failure.facts["errno"] or errno.EIO}
    if failure and failure.facts["errno"] == errno.EFBIG:
        return {"problem": "it needs too much disk space"}
    if not failure and not isinstance(error, MoorageError):
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    facts = error.facts if isinstance(error, MoorageError) else {}
    # A decoder reports a failed allocation in many ways, some of them as a damaged file.
    width, height = facts.get("width_px") or 0, facts.get("height_px") or 0
    needs_memory = failure is not None or _read_peak_bytes() + 4 * width * height > memory_bytes
    return {"problem": str(error), "facts": facts, "needs_memory": needs_memory}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    from media.limits import Limits  # after the limits of this process, which include imports

    limits = Limits(**{**request["limits"], "is_confined": True})
    with open(0, "rb", closefd=False) as source:
        if demuxer := request.get("demuxer"):
            return {"thumbnail": _encode_thumbnail(_render_poster(source, demuxer, limits))}
        return _validate(source, request, limits)


def _render_poster(source: BinaryIO, demuxer: str, limits: Any) -> Any:
    from media import containers, poster

    shared = containers.open_pieces(source, [(0, os.fstat(0).st_size)])  # the parent continues to read the open file
    return poster.render_poster(shared, demuxer, limits)


def _validate(source: BinaryIO, request: dict[str, Any], limits: Any) -> dict[str, Any]:
    from media import validate
    from moorage.model import FetchedFile

    fetched = FetchedFile(source, request["bytes"], "", request["type"], request["extension"])
    examined = validate.validate_file(fetched, limits)
    if request["out"] is not None:
        with open(request["out"], "w+b", closefd=False) as out:
            _write_without_metadata(source, out, examined.media)
            size = os.fstat(out.fileno()).st_size
            examined = validate.validate_file(FetchedFile(out, size, ""), limits)  # the stored bytes, too
    return {"media": asdict(examined.media), "thumbnail": _encode_thumbnail(examined.thumb)}


def _encode_thumbnail(thumb: Any) -> dict[str, Any] | None:
    return {**asdict(thumb), "data": base64.b64encode(thumb.data).decode()} if thumb else None


def _write_without_metadata(source: BinaryIO, out: BinaryIO, media: Any) -> None:
    from media import strip_image_metadata, strip_video_metadata

    if media.media == "image":
        out.writelines(strip_image_metadata.strip_image(source, media))
    else:
        shutil.copyfileobj(source, out)
    out.flush()
    if media.media == "video":
        with mmap.mmap(out.fileno(), 0) as data:
            end = strip_video_metadata.STRIP_BY_FORMAT[media.format](data)
        out.truncate(end)


def _read_peak_bytes() -> int:
    """Return the largest address space that this process has had; 0 where the system does not state it."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            line = next((line for line in status if line.startswith("VmPeak:")), "VmPeak: 0 kB")
    except OSError:
        return 0
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
