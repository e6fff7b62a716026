"""
A separate program: validates the file on standard input and writes its properties and thumbnail to standard output.

It is started by file path, so that a large or hostile file affects this process within its limits, not the worker.
Exit status 0, or 3 and the reason; always one line of JSON.
"""

import base64
import errno
import json
import os
import sys
from dataclasses import asdict
from typing import Any, Final

from media.poster_process import FAILED, limit_resources

_OWN_LIMITS: Final = (errno.EFBIG, errno.ENOMEM)  # of this process: exceeded by the file
_MAX_OUTPUT_BYTES: Final = 32 * 2**20


def main(request: dict[str, Any]) -> int:
    """Run with `limits` as for `Limits`, and `bytes` of the input. Returns the exit status."""
    limits = request["limits"]
    limit_resources(
        limits["decoder_memory_bytes"], limits["decoder_cpu_seconds"], _MAX_OUTPUT_BYTES, limits["decoder_seconds"]
    )
    from moorage.errors import LocalFailure, MoorageError  # after the limits, which include imports

    try:
        facts = _validate(request)
    except MoorageError as error:
        if isinstance(error, LocalFailure) and error.facts["errno"] not in _OWN_LIMITS:
            return _write({"errno": error.facts["errno"] or errno.EIO}, FAILED)
        # A decoder reports a failed allocation in many ways, some of them as a damaged file.
        width, height = error.facts.get("width_px") or 0, error.facts.get("height_px") or 0
        needs_memory = error.retryable or _read_peak_bytes() + 4 * width * height > limits["decoder_memory_bytes"]
        return _write({"problem": str(error), "facts": error.facts, "needs_memory": needs_memory}, FAILED)
    except MemoryError:
        return _write({"problem": "", "facts": {}, "needs_memory": True}, FAILED)
    except Exception as error:  # noqa: BLE001 (the outermost line of a process)
        return _write({"error": f"{type(error).__name__}: {error}"[:500]}, FAILED)
    return _write(facts, 0)


def _validate(request: dict[str, Any]) -> dict[str, Any]:
    from media import validate
    from media.limits import Limits
    from moorage.model import FetchedFile

    limits = Limits(**{**request["limits"], "is_confined": True})
    with open(0, "rb", closefd=False) as file:
        fetched = FetchedFile(file, request["bytes"], "", request["type"], request["extension"])
        examined = validate.validate_file(fetched, limits)
    thumb = examined.thumb
    shown = {**asdict(thumb), "data": base64.b64encode(thumb.data).decode()} if thumb else None
    return {"media": asdict(examined.media), "thumbnail": shown}


def _read_peak_bytes() -> int:
    """Return the largest address space that this process has had; 0 where the system does not state it."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            line = next((line for line in status if line.startswith("VmPeak:")), "VmPeak: 0 kB")
    except OSError:
        return 0
    return int(line.split()[1]) * 1024


def _write(fields: dict[str, Any], status: int) -> int:
    with os.fdopen(1, "wb", closefd=False) as out:
        out.write(json.dumps(fields).encode())
    return status


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
