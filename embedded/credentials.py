"""The random passwords of one stack, kept in its folder."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Credentials:
    """The passwords and keys with which the servers of one folder are reached."""

    postgres_password: str = field(repr=False, default_factory=lambda: secrets.token_hex(16))
    valkey_password: str = field(repr=False, default_factory=lambda: secrets.token_hex(16))
    s3_access_key: str = field(repr=False, default_factory=lambda: "moorage" + secrets.token_hex(6))
    s3_secret_key: str = field(repr=False, default_factory=lambda: secrets.token_hex(20))


def load(path: Path) -> Credentials:
    """Return the credentials in the file, made at random on the first call; only its owner may read it."""
    try:
        return Credentials(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        made = Credentials()
        write_private(path, json.dumps(asdict(made), indent=1))
        return made


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
