"""A small real file system (tmpfs) that faults fill, in a mount namespace that ends with its process."""

import ctypes
import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from embedded import unprivileged

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_PRIVATE_RECURSIVE: Final = 0x44000


def enter_mount_namespace() -> bool:
    """
    Return True if this process may mount from now on: root, or in a user namespace of its own.

    Call it before there are threads; processes that are started later see the mounts.
    """
    if not hasattr(_LIBC, "unshare"):  # not Linux
        return False
    uid, gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)):
        return False
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return bool(_LIBC.mount(b"none", b"/", None, _MS_PRIVATE_RECURSIVE, None) == 0)


def mount_small_disk(size_mb: int) -> Path:
    """Mount an empty file system that all users may write to. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix="moorage-disk-"))  # PostgreSQL's user cannot enter a private checkout
    if _LIBC.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size_mb}m,mode=1777".encode()):
        raise OSError(ctypes.get_errno(), "the tmpfs cannot be mounted", str(folder))
    return folder


def unmount(folder: Path) -> None:
    """Unmount at once, also while files are open."""
    _LIBC.umount2(bytes(folder), 2)
    folder.rmdir()


def create_tablespace_folder(disk: Path) -> Path:
    """Return a new folder that belongs to the user of PostgreSQL."""
    folder, user = disk / "postgres", unprivileged.find_user()
    folder.mkdir(mode=0o700)
    if user:
        os.chown(folder, user.uid, user.gid)
    return folder


def occupy(disk: Path) -> Path:
    """Fill the disk to its last page; return the file to delete."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler
