"""Random passwords of one stack, stored in its folder."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Credentials:
    """Passwords and keys of the servers in one folder."""

    postgres_password: str = field(repr=False, default_factory=lambda: secrets.token_hex(16))
    valkey_password: str = field(repr=False, default_factory=lambda: secrets.token_hex(16))
    s3_access_key: str = field(repr=False, default_factory=lambda: "moorage" + secrets.token_hex(6))
    s3_secret_key: str = field(repr=False, default_factory=lambda: secrets.token_hex(20))


def load_or_create(path: Path) -> Credentials:
    """Return the credentials in the file; the first call creates it with random values, readable by its owner only."""
    try:
        return Credentials(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        created = Credentials()
        write_private(path, json.dumps(asdict(created), indent=1))
        return created


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
