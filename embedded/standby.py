"""A hot standby of an embedded PostgreSQL: synchronous streaming replication, and promotion."""

import subprocess
from pathlib import Path

import psycopg

from embedded.postgres import _CWD, Postgres, _environment
from moorage.errors import ConfigError


class Standby(Postgres):
    """A copy of a running primary in `folder`; it follows the primary until it is promoted."""

    name = "standby"

    def __init__(self, primary: Postgres, folder: Path) -> None:
        super().__init__(folder, primary._password, folder.with_name(folder.name + ".log"), primary._version)
        self.primary = primary

    def follow(self) -> None:
        """Start it, and have the primary commit nothing from then on that is not on this server's disk, too."""
        self.start()
        with psycopg.connect(self.primary.url("postgres"), autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            conn.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Make it the primary; the old one must be dead."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            conn.execute("SELECT pg_promote()")

    def both_url(self, database: str = "moorage") -> str:
        """Return the URL that reaches whichever server accepts writes, this one tried first."""
        hosts = f"127.0.0.1:{self.port},127.0.0.1:{self.primary.port}"
        return f"postgresql://moorage:{self._password}@{hosts}/{database}?target_session_attrs=read-write"

    def _initdb(self, new: Path, _password: Path) -> None:
        source = f"host=127.0.0.1 port={self.primary.port} user=moorage password={self._password}"
        done = subprocess.run(
            [self._bin("pg_basebackup"), "-d", source, "-D", _CWD if self._user else new, "-R", "-X", "stream",
             "-c", "fast"],
            cwd=new, env=_environment(), capture_output=True, text=True, check=False,
            user=self._user and self._user.uid, group=self._user and self._user.gid,
            extra_groups=self._user and (),
        )  # fmt: skip
        if done.returncode:
            raise ConfigError(f"pg_basebackup failed: {done.stderr.strip()[-2000:]}")
