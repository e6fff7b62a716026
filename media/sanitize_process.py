"""
A separate program: validates the upload on standard input and writes it without metadata to another open file.

It is started by file path, so that a hostile file affects this process within its limits, not the one that receives
webhooks. Exit status 0 and the properties as JSON on standard output, or 3 and the reason.
"""

import errno
import json
import mmap
import os
import shutil
import sys
from dataclasses import asdict
from typing import Any, BinaryIO, Final

from media.poster_process import FAILED, limit_resources

_MAX_MESSAGE: Final = 500
_OWN_LIMITS: Final = (errno.EFBIG, errno.ENOMEM)  # of this process: exceeded by the file


def main(request: dict[str, Any]) -> int:
    """
    Write the file and its properties, and return the exit status.

    The request has `out` (file descriptor to write to), `bytes` of the input, `limits` as for `Limits`, and the limits
    of this process: `memory_bytes`, `seconds` of CPU, `clock_seconds`, `max_file_bytes`.
    """
    limit_resources(request["memory_bytes"], request["seconds"], request["max_file_bytes"], request["clock_seconds"])
    from moorage.errors import Permanent  # after the limits, which include imports
    from moorage.local_errors import find_local_failure

    try:
        facts = _validate_and_sanitize(request)
    except (Permanent, MemoryError) as error:
        return _write_result({"problem": str(error)[:_MAX_MESSAGE] or "needs too much memory"}, FAILED)
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        failure, message = find_local_failure(error), f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
        if failure and failure.facts["errno"] in _OWN_LIMITS:
            return _write_result({"problem": f"needs too much memory or disk space: {message}"}, FAILED)
        return _write_result({"error": message}, FAILED)
    return _write_result(facts, 0)


def _validate_and_sanitize(request: dict[str, Any]) -> dict[str, Any]:
    from media import validate
    from media.limits import Limits
    from moorage.model import FetchedFile

    limits = Limits(**{**request["limits"], "is_confined": True})
    with open(0, "rb", closefd=False) as source, open(request["out"], "w+b", closefd=False) as out:
        media = validate.validate_file(FetchedFile(source, request["bytes"], ""), limits).media
        if media.media == "file":
            source.seek(0)
            shutil.copyfileobj(source, out)
            return asdict(media)
        if media.media == "image":
            _sanitize_image(source, out, media)
        else:
            _sanitize_video(source, out, media.format)
        out.flush()
        size = os.fstat(out.fileno()).st_size
        sanitized = validate.validate_file(FetchedFile(out, size, ""), limits).media  # the stored bytes, too
    return asdict(sanitized)


def _sanitize_image(source: BinaryIO, out: BinaryIO, media: Any) -> None:
    from media import containers, reencode, strip_image_metadata

    reencoded: Any = reencode.reencode_if_needed(source, media)
    if reencoded is None:
        with containers.map_file(source) as mapped:
            out.writelines(strip_image_metadata.STRIP_BY_FORMAT[media.format](mapped))
        return
    encoding, encoded = reencoded
    out.writelines(strip_image_metadata.STRIP_BY_FORMAT[encoding](encoded))


def _sanitize_video(source: BinaryIO, out: BinaryIO, encoding: str) -> None:
    from media import strip_video_metadata

    source.seek(0)
    shutil.copyfileobj(source, out)
    out.flush()
    with mmap.mmap(out.fileno(), 0) as data:
        end = strip_video_metadata.STRIP_BY_FORMAT[encoding](data)
    out.truncate(end)


def _write_result(fields: dict[str, Any], status: int) -> int:
    os.write(1, json.dumps(fields).encode())
    return status


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
