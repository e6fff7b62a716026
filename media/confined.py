"""
Decoder processes: programs with limited memory and time that read a file from standard input.

One runs at a time for each installation on a machine, so that a worker with all its processes needs the memory of one
decoder.
"""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from moorage.errors import ResourceExhausted
from moorage.local_errors import translate_local_errors

_INHERITED: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")  # no credentials
_ROOT: Final = Path(__file__).resolve().parents[1]
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


def describe_end(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


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
