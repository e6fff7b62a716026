"""A temporary file that is being written: bytes are counted, hashed, and limited by the kind of file."""

import hashlib
from typing import BinaryIO

from media import sniff
from media.limits import Limits
from moorage.errors import FileTooLarge
from moorage.local_errors import translate_local_errors
from moorage.model import FetchedFile


class Spool:
    """
    A file that is being written. Its size limit is that of the largest kind until the first bytes identify the kind.

    Raises, from every method:
        DiskFull, ResourceExhausted: the temporary folder is full or not usable.
        FileTooLarge: the announced or written size exceeds the limit.
    """

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file, self._limits = file, limits
        self._hash = hashlib.sha256()
        self._head = b""
        self._max_bytes, self._setting = _get_size_limit(b"", limits)
        self.size_bytes = 0
        self.expected_bytes: int | None = None

    def set_expected_bytes(self, expected: int | None) -> None:
        """Set the announced size; refuse it at once if it is too large."""
        self.expected_bytes = expected
        self._check()

    def write(self, chunk: bytes) -> None:
        if len(self._head) < sniff.HEAD_BYTES:
            self._head += chunk[: sniff.HEAD_BYTES - len(self._head)]
            self._max_bytes, self._setting = _get_size_limit(self._head, self._limits)
        self.size_bytes += len(chunk)
        self._check()
        self._hash.update(chunk)
        with translate_local_errors("the temporary folder"):
            self._file.write(chunk)

    def finish(self, declared_type: str | None = None, declared_extension: str | None = None) -> FetchedFile:
        """Return the complete file, positioned at 0."""
        with translate_local_errors("the temporary folder"):
            self._file.flush()
            self._file.seek(0)
        return FetchedFile(self._file, self.size_bytes, self._hash.hexdigest(), declared_type, declared_extension)

    def _check(self) -> None:
        size = max(self.size_bytes, self.expected_bytes or 0)
        if size > self._max_bytes:
            prefix = "at least " if size == self.size_bytes else ""
            raise FileTooLarge(
                f"too large: {prefix}{size} bytes, the limit is {self._max_bytes} ({self._setting})",
                facts={"bytes": self.size_bytes, "expected": self.expected_bytes, "limit": self._max_bytes},
            )


def _get_size_limit(head: bytes, limits: Limits) -> tuple[int, str]:
    """Return the limit of the kind of file, and the name of its setting; the larger one until the kind is known."""
    if len(head) < 12:
        return max(limits.get_size_limit("image"), limits.get_size_limit("file"))
    kind = sniff.detect_format(head)
    return limits.get_size_limit(kind.media if kind else "file")
