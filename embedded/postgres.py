"""PostgreSQL with fsync, checksums and a password, TCP on loopback only; also for root, in a private checkout."""

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
    "shared_buffers": "32MB",  # a stack on one machine: the kernel caches the same pages
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# The path of the data folder may be closed to its user (a private checkout): it becomes the working directory while
# this process is still root, and is passed under this name.
_CWD: Final = "/proc/self/cwd"


class Postgres(Server):
    """PostgreSQL with its data in `folder`. Its superuser is `moorage`."""

    name = "postgres"

    def __init__(self, folder: Path, password: str, log_path: Path, version: wheels.PostgresVersion = 18) -> None:
        super().__init__(folder)
        self._password, self._log_path, self._version = password, log_path, version
        self._user: User | None = None
        self._install: Path | None = None
        self._copy_file = self.folder.with_name(self.folder.name + ".copy")  # path of the copy, for a later clean-up

    def url(self, database: str = "moorage") -> str:
        return f"postgresql://moorage:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database and return its URL. No client may be connected to the template."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists; its connections are ended."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def has_database(self, name: str) -> bool:
        with psycopg.connect(self.url("postgres")) as conn:
            return conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None

    def create_process(self) -> Process:
        """Run initdb on the first start."""
        self._user = unprivileged.find_user()
        if not self.folder.exists():
            self._create_data_folder()
        settings = {**_SETTINGS, "port": str(self.port)}
        if self._version >= 18:
            settings["io_method"] = "sync"  # as before 18: without three processes that read ahead
        return Process(
            [self._bin("postgres"), "-D", self._data(), *(f"--{key}={value}" for key, value in settings.items())],
            env=_environment(),
            cwd=self.folder,
            log_path=self._log_path,
            ready=self._answers,
            name=self.name,
            user=self._user,
            stop_signal=signal.SIGINT,  # fast shutdown: ends connections, then a checkpoint
            grace_seconds=30.0,
            death_signal=signal.SIGINT,
            lock_path=self.folder.with_name(self.folder.name + ".lock"),
            stale_path=self.folder / "postmaster.pid",  # its number may be another process's: PostgreSQL would refuse
        )

    def remove_leftovers(self) -> None:
        """Remove the copy of the binaries that a start as root creates."""
        if self._copy_file.exists():
            unprivileged.remove_copy(Path(self._copy_file.read_text(encoding="utf-8")))
            self._copy_file.unlink()
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
            install = wheels.postgres_folder(self._version)
            if self._user is not None:
                self.remove_leftovers()  # of a killed supervisor
                install = unprivileged.copy_installation(install)
                write_private(self._copy_file, str(install))
            self._install = install
        return self._install / "bin" / name

    def _data(self) -> str:
        return _CWD if self._user else str(self.folder)

    def _create_data_folder(self) -> None:
        """Run initdb in another folder and rename it, so that the data folder is always complete."""
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
        with password.open("rb") as file:  # as standard input: the user cannot open the file by path
            done = subprocess.run(
                [self._bin("initdb"), "-D", _CWD if self._user else new, "-U", "moorage", "-A", "scram-sha-256",
                 "--pwfile", "/dev/stdin", "-E", "UTF8", "--no-locale", "--no-instructions"],
                cwd=new, stdin=file, env=_environment(), capture_output=True, text=True, check=False,
                user=self._user and self._user.uid, group=self._user and self._user.gid,
                extra_groups=self._user and (),
            )  # fmt: skip
        if done.returncode:
            raise ConfigError(f"initdb failed in {new} (exit status {done.returncode}): {done.stderr.strip()[-2000:]}")


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
