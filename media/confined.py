"""
Decoder processes: programs with limited memory and time that read a file from standard input.

One runs at a time for each installation on a machine, so that a worker with all its processes needs the memory of one
decoder.
"""

import base64
import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

from media import decoder_process
from media.limits import Limits
from moorage.errors import InvalidMedia, MoorageError, ResourceExhausted, Transient
from moorage.local_errors import build_failure, translate_local_errors
from moorage.model import FetchedFile, Media, Thumbnail
from moorage.text import to_storable

_INHERITED: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")  # no credentials
_ROOT: Final = Path(__file__).resolve().parents[1]
_MAX_OUTPUT_BYTES: Final = 32 * 2**20
_MAX_GROWTH: Final = 4  # of an image that is re-encoded: AVIF as PNG
_EXTRA_SECONDS: Final = 5.0
_LOCK_POLL_SECONDS: Final = 0.05
LOCK_SECONDS: Final = 80.0  # with a decoder and a transfer to storage below the limit, 600 s


def validate_in_process(
    fetched: FetchedFile, limits: Limits, facts: dict[str, Any], clean: BinaryIO | None = None
) -> tuple[Media, Thumbnail | None]:
    """
    Validate a file that is no video in a decoder process, or any file, and write it without metadata to `clean`.

    Raises as `validate.validate_file`; Transient also if the system ended the process, or it took too long. A process
    that has `clean` does not wait for others.
    """
    request = {
        "bytes": fetched.size_bytes,
        "type": to_storable(fetched.declared_type or "", 200),
        "extension": fetched.declared_extension,
        "out": clean and clean.fileno(),
    }
    result = run_decoder(request, fetched.file, limits, facts, clean)
    thumbnail = result["thumbnail"]
    return Media(**result["media"]), decode_thumbnail(thumbnail) if thumbnail else None


def decode_thumbnail(fields: dict[str, Any]) -> Thumbnail:
    return Thumbnail(**{**fields, "data": base64.b64decode(fields["data"])})


def run_decoder(
    request: dict[str, Any], file: BinaryIO, limits: Limits, facts: dict[str, Any], clean: BinaryIO | None = None
) -> dict[str, Any]:
    """Return the result of the program; raises InvalidMedia for the file, Transient for the system or a time-out."""
    max_file_bytes = _MAX_GROWTH * limits.max_bytes if clean else _MAX_OUTPUT_BYTES
    request = {"limits": asdict(limits), "max_file_bytes": max_file_bytes, **request}
    with contextlib.nullcontext() if clean else _hold_lock():
        status, output = _run_program(request, file, limits.decoder_seconds + _EXTRA_SECONDS, clean)
    if status is None or -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGALRM):
        raise Transient("the decoder was ended by the system or took too long", facts={**facts, "status": status})
    if -status == signal.SIGXCPU:
        raise InvalidMedia(f"decoding takes longer than {limits.decoder_cpu_seconds} s of CPU time", facts=facts)
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        result = {"facts": {"status": status}, "needs_memory": True, "has_crashed": True}
    if status or "thumbnail" not in result:
        raise _build_error(result, limits, facts)
    return result


def _run_program(
    request: dict[str, Any], file: BinaryIO, timeout_seconds: float, clean: BinaryIO | None
) -> tuple[int | None, bytes]:
    """
    Return exit status and output of the program with the file as standard input.

    The status is None if the time limit ended the process; a negative one is the signal that did. Raises LocalFailure
    if it cannot be started.
    """
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    offset = file.tell()
    try:
        with translate_local_errors("the decoder did not start", ResourceExhausted):
            process = subprocess.run(
                [sys.executable, "-P", decoder_process.__file__, json.dumps(request)],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(clean.fileno(),) if clean else (),
                env=environment,
                timeout=timeout_seconds,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return None, b""
    finally:  # the process moved the offset, which the buffer of the file does not know
        file.seek(0, os.SEEK_END)
        file.seek(offset)
    return process.returncode, process.stdout


@contextlib.contextmanager
def _hold_lock() -> Iterator[None]:
    """Hold a lock on this file, which ends with the process that holds it."""
    give_up_at = time.monotonic() + LOCK_SECONDS
    with Path(__file__).open("rb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up_at:
                    message = "other files are being decoded on this machine"
                    raise ResourceExhausted(message, facts={"errno": errno.EAGAIN}) from error
            time.sleep(_LOCK_POLL_SECONDS)
        yield


def _build_error(result: dict[str, Any], limits: Limits, facts: dict[str, Any]) -> MoorageError:
    if "errno" in result:
        return build_failure("the decoder", OSError(result["errno"], os.strerror(result["errno"])))
    if "error" in result:
        return Transient(f"the file could not be validated: {result['error']}", facts=facts)
    facts = {**facts, **result.get("facts", {})}
    if result.get("needs_memory"):
        limit = limits.decoder_memory_bytes
        subject = "the decoder crashed, or" if result.get("has_crashed") else "decoding"
        message = f"{subject} needs more memory than MOORAGE_DECODER_MEMORY_BYTES ({limit})"
        return InvalidMedia(message, facts={**facts, "limit": limit})
    return InvalidMedia(result["problem"], facts=facts)
