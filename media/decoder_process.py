"""
A separate program: validates the file on standard input, and writes it without metadata to another open file if asked.

It is started by file path, so that a large or hostile file affects this process within its limits, not the worker or
the server that receives webhooks. Exit status 0, or 3 and the reason; always one line of JSON on standard output.
"""

import base64
import errno
import json
import mmap
import os
import shutil
import sys
from dataclasses import asdict
from typing import Any, BinaryIO, Final

from media.poster_process import FAILED, limit_resources

_OWN_LIMITS: Final = (errno.EFBIG, errno.ENOMEM)  # of this process: exceeded by the file


def main(request: dict[str, Any]) -> int:
    """
    Write properties and thumbnail of a file, and return the exit status.

    The request has `limits` as for `Limits`, `bytes`, `type` and `extension` of the input, the limits of this process
    (`cpu_seconds`, `clock_seconds`, `max_file_bytes`), and `out`, the file to write to, or None.
    """
    memory_bytes = request["limits"]["decoder_memory_bytes"]
    limit_resources(memory_bytes, request["cpu_seconds"], request["max_file_bytes"], request["clock_seconds"])
    try:
        result, status = _validate(request), 0
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        result, status = _describe_error(error, memory_bytes), FAILED
    with os.fdopen(1, "wb", closefd=False) as out:
        out.write(json.dumps(result).encode())
    return status


def _describe_error(error: Exception, memory_bytes: int) -> dict[str, Any]:
    from moorage.errors import MoorageError
    from moorage.local_errors import find_local_failure

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


def _validate(request: dict[str, Any]) -> dict[str, Any]:
    from media import validate  # after the limits, which include imports
    from media.limits import Limits
    from moorage.model import FetchedFile

    limits = Limits(**{**request["limits"], "is_confined": True})
    with open(0, "rb", closefd=False) as source:
        fetched = FetchedFile(source, request["bytes"], "", request["type"], request["extension"])
        examined = validate.validate_file(fetched, limits)
        if request["out"] is not None:
            with open(request["out"], "w+b", closefd=False) as out:
                _write_without_metadata(source, out, examined.media)
                size = os.fstat(out.fileno()).st_size
                examined = validate.validate_file(FetchedFile(out, size, ""), limits)  # the stored bytes, too
    thumb = examined.thumb
    shown = {**asdict(thumb), "data": base64.b64encode(thumb.data).decode()} if thumb else None
    return {"media": asdict(examined.media), "thumbnail": shown}


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
