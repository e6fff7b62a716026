"""The folder of a stack, which one process uses at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from moorage.errors import ConfigError

_LOCK: Final = "lock"
_occupied: Final[dict[Path, int]] = {}


@contextlib.contextmanager
def occupy(folder: Path) -> Iterator[None]:
    """
    Lock a folder for this process, before anything is written into it; a stack in it shares the lock.

    Raises ConfigError if another process has it.
    """
    folder = folder.resolve()
    create(folder)
    _occupied[folder] = lock(folder)
    try:
        yield
    finally:
        os.close(_occupied.pop(folder))


def create(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise ConfigError(f"{folder} belongs to another user: set MOORAGE_DATA_DIR to a folder of your own")


def lock(folder: Path) -> int:
    """Return the descriptor of the folder's lock, held until it is closed. Raises ConfigError if another has it."""
    if folder in _occupied:
        return os.dup(_occupied[folder])
    while True:
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise ConfigError(
                f"servers are already running in {folder}: stop them first, or use another folder"
            ) from error
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # removed with its folder, by a run that has just ended
