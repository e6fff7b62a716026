"""
A program of its own that examines the upload on standard input and writes it, freed of metadata, to another open file.

It is started as a file. What a hostile file does to the decoder happens here, within limits, and not in the process
that takes webhooks. Exit 0 and the facts as JSON on standard output, or exit 3 and why not.
"""

import json
import mmap
import os
import shutil
import sys
from dataclasses import asdict
from typing import Any, BinaryIO, Final

from media.poster_process import FAILED, limit_resources

_MAX_MESSAGE: Final = 500


def main(given: dict[str, Any]) -> int:
    """
    Write the file and its facts, and return the exit status.

    Args:
        given: `out` (the file to write, a descriptor), `bytes` and `sha256` of what came, `limits` as `Limits` takes
            them, and this process's own: `memory_bytes`, `seconds`, `max_file_bytes`.
    """
    limit_resources(given["memory_bytes"], given["seconds"], given["max_file_bytes"])
    from moorage.errors import Permanent  # after the limits: what is loaded and decoded is what they hold

    try:
        facts = _work(given)
    except (Permanent, MemoryError) as error:
        return _say({"problem": str(error)[:_MAX_MESSAGE] or "it takes too much memory"}, FAILED)
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        return _say({"error": f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]}, FAILED)
    return _say(facts, 0)


def _work(given: dict[str, Any]) -> dict[str, Any]:
    from media import validate
    from media.limits import Limits
    from moorage.errors import InvalidMedia, Transient
    from moorage.model import FetchedFile

    limits = Limits(**given["limits"])
    with open(0, "rb", closefd=False) as came, open(given["out"], "w+b", closefd=False) as out:
        try:
            media = validate.validate_file(FetchedFile(came, given["bytes"], given["sha256"]), limits).media
            if media.media == "image":
                _picture(came, out, media)
            else:
                _video(came, out, media.format)
            out.flush()
            size = os.fstat(out.fileno()).st_size
            kept = validate.validate_file(
                FetchedFile(out, size, ""), limits
            ).media  # what is stored is what was decoded
        except Transient as error:
            raise InvalidMedia(f"it takes too much memory or room: {error}") from error
    return asdict(kept)


def _picture(came: BinaryIO, out: BinaryIO, media: Any) -> None:
    from media import reencode, strip_image_metadata

    data: Any = reencode.reencode_if_needed(came, media)
    if data is None:
        with mmap.mmap(came.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            out.writelines(strip_image_metadata.STRIP_BY_FORMAT[media.format](whole))
        return
    encoding, encoded = data
    out.writelines(strip_image_metadata.STRIP_BY_FORMAT[encoding](encoded))


def _video(came: BinaryIO, out: BinaryIO, encoding: str) -> None:
    from media import strip_video_metadata

    came.seek(0)
    shutil.copyfileobj(came, out)
    strip_video_metadata.STRIP_BY_FORMAT[encoding](out, out.tell())


def _say(fields: dict[str, Any], status: int) -> int:
    os.write(1, json.dumps(fields).encode())
    return status


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
