"""A real PostgreSQL: fsync and checksums on, password, TCP on loopback only; also as root, from a closed checkout."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from embedded import unprivileged, wheels
from embedded.credentials import write_private
from embedded.process import Process, User
from embedded.server import Server
from moorage.errors import ConfigError

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# A data folder that its user cannot reach by path (a closed checkout) is entered while this process is still root, and
# named by this.
_HERE: Final = "/proc/self/cwd"


class Postgres(Server):
    """PostgreSQL with its data in `folder`. Its superuser is `moorage`."""

    name = "postgres"

    def __init__(self, folder: Path, password: str, log_path: Path, version: wheels.PostgresVersion = 18) -> None:
        super().__init__(folder)
        self._password, self._log_path, self._version = password, log_path, version
        self._user: User | None = None
        self._install: Path | None = None
        self._note = self.folder.with_name(self.folder.name + ".copy")  # where the copy is, for a later clean-up

    def url(self, database: str = "moorage") -> str:
        """Return the `postgresql://` URL of a database."""
        return f"postgresql://moorage:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, as a copy of another that nobody is connected to if given, and return its URL."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, if there is one, and end the connections to it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def has_database(self, name: str) -> bool:
        """Return whether a database of that name exists."""
        with psycopg.connect(self.url("postgres")) as conn:
            return conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None

    def prepare(self) -> Process:
        """Make the data folder on the first start and return the process."""
        self._user = unprivileged.user()
        if not self.folder.exists():
            self._make()
        settings = {**_SETTINGS, "port": str(self.port)}
        return Process(
            [self._bin("postgres"), "-D", self._data(), *(f"--{key}={value}" for key, value in settings.items())],
            env=_environment(),
            cwd=self.folder,
            log_path=self._log_path,
            ready=self._answers,
            name=self.name,
            user=self._user,
            stop_signal=signal.SIGINT,  # "fast": ends connections, then a checkpoint
            grace_seconds=30.0,
            death_signal=signal.SIGINT,
            lock_path=self.folder.with_name(self.folder.name + ".lock"),
        )

    def tidy(self) -> None:
        """Remove the copy of the binaries that a start as root makes."""
        if self._note.exists():
            unprivileged.remove(Path(self._note.read_text(encoding="utf-8")))
            self._note.unlink()
        self._install = None

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            conn.execute(statement)

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=5):
                return True
        except psycopg.OperationalError:  # not listening yet, or still in recovery
            return False

    def _bin(self, name: str) -> Path:
        if self._install is None:
            self._install = wheels.postgres(self._version)
            if self._user is not None:
                self.tidy()  # what a killed supervisor left
                self._install = unprivileged.copy(wheels.postgres(self._version))
                write_private(self._note, str(self._install))
        return self._install / "bin" / name

    def _data(self) -> str:
        return _HERE if self._user else str(self.folder)

    def _make(self) -> None:
        """Run initdb beside the folder and rename: a folder of that name is always whole."""
        new = self.folder.with_name(self.folder.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        password = self.folder.with_name(self.folder.name + ".password")
        write_private(password, self._password)
        if self._user:
            os.chown(new, *self._user)
            os.chown(password, *self._user)
        try:
            self._initdb(new, password)
        finally:
            password.unlink()
        new.rename(self.folder)

    def _initdb(self, new: Path, password: Path) -> None:
        with password.open("rb") as file:  # as its standard input: the user need not reach the file
            done = subprocess.run(
                [
                    self._bin("initdb"),
                    "-D",
                    _HERE if self._user else new,
                    "-U",
                    "moorage",
                    "-A",
                    "scram-sha-256",
                    "--pwfile",
                    "/dev/stdin",
                    "-E",
                    "UTF8",
                    "--no-locale",
                    "--no-instructions",
                ],
                cwd=new,
                stdin=file,
                env=_environment(),
                capture_output=True,
                text=True,
                check=False,
                user=self._user and self._user.uid,
                group=self._user and self._user.gid,
                extra_groups=self._user and (),
            )
        if done.returncode:
            raise ConfigError(f"initdb failed in {new} (exit status {done.returncode}): {done.stderr.strip()[-2000:]}")


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
