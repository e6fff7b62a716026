"""Errors of this machine: the one table of errno values that are never counted against a row, and temporary files."""

import contextlib
import errno
import io
import os
import ssl
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final

from moorage.errors import DiskFull, LocalFailure, ResourceExhausted

# docs/reference/errors.md has the same table; a test compares them.
LOCAL_ERRNOS: Final[dict[int, type[LocalFailure]]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE), DiskFull),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS), ResourceExhausted),
}


def find_local_failure(error: BaseException) -> LocalFailure | None:
    """Return the failure of this machine that caused an error, by its chain of causes; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LocalFailure):
            return cause
        # The errno of an SSLError is a code of OpenSSL: 5 is a closed connection, not EIO.
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno in LOCAL_ERRNOS:
            return build_failure("this machine", cause)
        if isinstance(cause, MemoryError):
            return build_failure("this machine", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def build_failure(place: str, error: OSError, default: type[LocalFailure] = DiskFull) -> LocalFailure:
    name = errno.errorcode.get(error.errno or 0, "no errno")
    failure = LOCAL_ERRNOS.get(error.errno or 0, default)
    return failure(f"{place}: {error.strerror or error} ({name})", facts={"errno": error.errno})


@contextlib.contextmanager
def translate_local_errors(place: str, default: type[LocalFailure] = DiskFull) -> Iterator[None]:
    """Convert every OSError of a block that only uses this machine, whatever its errno."""
    try:
        yield
    except OSError as error:
        raise build_failure(place, error, default) from error


class UnnamedFile(io.BufferedRandom):
    """
    A temporary file whose `close` does not raise.

    After a failed write, closing would write the rest of the buffer again, and that error would replace the first one.
    Whoever needs the bytes on the disk flushes them.
    """

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def open_temporary_file() -> BinaryIO:
    """Return an unnamed file, which the kernel deletes with a killed process. Raises DiskFull, ResourceExhausted."""
    with translate_local_errors("the temporary folder"):
        return UnnamedFile(tempfile.TemporaryFile(buffering=0))
