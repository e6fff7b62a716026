"""The folder of a stack, which one process uses at a time; and how a run clears what an earlier one left in it."""

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from embedded import process, seaweedfs, unprivileged
from moorage.errors import ConfigError
from moorage.settings import env_names_by_field

_LOCK: Final = "lock"
_CLEARABLE: Final = "cleared-by-the-next-run"  # marks the folder of a demo or a drill
_occupied: Final[dict[Path, int]] = {}


@contextlib.contextmanager
def occupy(folder: Path, *, clears: bool = False) -> Iterator[None]:
    """
    Lock a folder for this process, before anything is written into it; a stack in it shares the lock.

    Settings in the environment, of another deployment, are absent meanwhile, and no proxy is asked for local servers.
    The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt; later ones are ignored: they would cut the stop short.
    Raises ConfigError if another process has it, or if it is to be cleared and has files of the user.
    """
    folder = folder.resolve()
    if clears:
        _require_clearable(folder)
    create(folder)
    _occupied[folder] = lock(folder)
    try:
        if clears:
            _clear(folder)
        with _separate_environment(), _interrupt_once():
            yield
    finally:
        os.close(_occupied.pop(folder))


@contextlib.contextmanager
def _separate_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        for name in itertools.chain(*env_names_by_field().values()):
            os.environ.pop(name, None)
            os.environ.pop(f"{name}_FILE", None)
        bypassed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        if bypassed != "*":
            local = ",".join(filter(None, (bypassed, "127.0.0.1", "localhost")))
            os.environ |= {"no_proxy": local, "NO_PROXY": local}
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _interrupt_once() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        for number in before:
            signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _require_clearable(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {_LOCK} and _CLEARABLE not in names:
        problem = "is not empty and has no mark of a demo or drill of this version"
        raise ConfigError(f"{folder} {problem}: remove it, or use another --folder")


def _clear(folder: Path) -> None:
    (folder / _CLEARABLE).touch()
    for server_lock in folder.rglob("*.lock"):  # PostgreSQL of a killed run may still be stopping
        with process.lock_file(server_lock, "postgres"):
            pass
    for copy in folder.rglob("postgres*.copy"):
        unprivileged.remove_copy(Path(copy.read_text(encoding="utf-8")))
    for ports_file in folder.rglob("seaweedfs/ports.json"):
        seaweedfs.remove_sockets(ports_file)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (_LOCK, _CLEARABLE):
            path.unlink()
