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
from dataclasses import asdict, dataclass
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
_LOCK_POLL_SECONDS: Final = 0.05
LOCK_SECONDS: Final = 80.0  # a download, this and a decoder stay below the limit of a step, 600 s


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """`status` is None if the time limit ended the process; a negative one is the signal that did."""

    status: int | None
    output: bytes


def run_decoder(
    program: str,
    arguments: list[Any],
    file: BinaryIO,
    *,
    timeout_seconds: float,
    out: BinaryIO | None = None,
    alone: bool = True,
    pass_fds: tuple[int, ...] = (),
) -> ProcessResult:
    """
    Run a program with the file as standard input; its output is returned, or written to `out`.

    `alone` waits for other decoders on this machine to end. Raises LocalFailure if that takes too long, or the process
    cannot be started.
    """
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    texts = [argument if isinstance(argument, str) else json.dumps(argument) for argument in arguments]
    offset = file.tell()
    with _hold_lock() if alone else contextlib.nullcontext():
        try:
            with translate_local_errors("the decoder did not start", ResourceExhausted):
                process = subprocess.run(
                    [sys.executable, "-P", program, *texts],
                    stdin=file,
                    stdout=subprocess.PIPE if out is None else out,
                    stderr=subprocess.DEVNULL,
                    pass_fds=pass_fds,
                    env=environment,
                    timeout=timeout_seconds,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            return ProcessResult(None, b"")
        finally:  # the process moved the offset, which the buffer of the file does not know
            file.seek(0, os.SEEK_END)
            file.seek(offset)
    return ProcessResult(process.returncode, process.stdout or b"")


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


def validate_in_process(
    fetched: FetchedFile,
    limits: Limits,
    facts: dict[str, Any],
    *,
    cpu_seconds: int | None = None,
    clock_seconds: int | None = None,
    max_file_bytes: int = _MAX_OUTPUT_BYTES,
    clean: BinaryIO | None = None,
) -> tuple[Media, Thumbnail | None]:
    """
    Validate a file that is no video in a decoder process, or any file, and write it without metadata to `clean`.

    Raises as `validate.validate_file`; Transient also if the system ended the process, or it took too long. A process
    that has `clean` does not wait for others.
    """
    cpu_seconds, clock_seconds = cpu_seconds or limits.decoder_cpu_seconds, clock_seconds or limits.decoder_seconds
    request = {
        "limits": asdict(limits),
        "bytes": fetched.size_bytes,
        "type": to_storable(fetched.declared_type or "", 200),
        "extension": fetched.declared_extension,
        "cpu_seconds": cpu_seconds,
        "clock_seconds": clock_seconds,
        "max_file_bytes": max_file_bytes,
        "out": clean and clean.fileno(),
    }
    done = run_decoder(
        decoder_process.__file__, [request], fetched.file, timeout_seconds=clock_seconds + 5, alone=clean is None,
        pass_fds=(clean.fileno(),) if clean else (),
    )  # fmt: skip
    if done.status is None or -done.status in (signal.SIGKILL, signal.SIGTERM, signal.SIGALRM):
        raise Transient("the decoder was ended by the system or took too long", facts={**facts, "status": done.status})
    if -done.status == signal.SIGXCPU:
        raise InvalidMedia(f"decoding takes longer than {cpu_seconds} s of CPU time", facts=facts)
    try:
        result: dict[str, Any] = json.loads(done.output)
    except ValueError:
        result = {"problem": "", "facts": {"status": done.status}, "needs_memory": True}
    if done.status == 0 and "media" in result:
        media, shown = Media(**result["media"]), result["thumbnail"]
        return media, Thumbnail(**{**shown, "data": base64.b64decode(shown["data"])}) if shown else None
    raise _build_error(result, limits, facts)


def _build_error(result: dict[str, Any], limits: Limits, facts: dict[str, Any]) -> MoorageError:
    if "errno" in result:
        return build_failure("the decoder", OSError(result["errno"], os.strerror(result["errno"])))
    if "error" in result:
        return Transient(f"the file could not be validated: {result['error']}", facts=facts)
    facts = {**facts, **result.get("facts", {})}
    if result.get("needs_memory"):
        limit = limits.decoder_memory_bytes
        message = f"decoding needs more memory than MOORAGE_DECODER_MEMORY_BYTES ({limit})"
        return InvalidMedia(message, facts={**facts, "limit": limit})
    return InvalidMedia(result["problem"], facts=facts)
