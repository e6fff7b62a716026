"""An installed PgBouncer in transaction mode before an embedded PostgreSQL, for tests. No wheel holds one."""

import os
import shutil
from pathlib import Path
from typing import Final

import psycopg
import pytest

from embedded import unprivileged
from embedded.credentials import write_private
from embedded.postgres import Postgres
from embedded.process import Process
from embedded.server import Server
from moorage.errors import ConfigError

SERVER_CONNECTIONS: Final = 4
_CONFIG: Final = """\
[databases]
* = host=127.0.0.1 port={postgres}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users.txt
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 500
"""


def find() -> str | None:
    """Return the path of an installed `pgbouncer`; Debian has it where only root looks."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


needs_pgbouncer = pytest.mark.skipif(find() is None, reason="no PgBouncer is installed")


class Pgbouncer(Server):
    """PgBouncer with four connections to the server, whatever the number of clients."""

    name = "pgbouncer"

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        super().__init__(folder)
        self._log_path = folder.with_name("pgbouncer.log")
        self._postgres = postgres

    def url(self, database: str) -> str:
        """Return the URL of a database of the server behind it."""
        return self._postgres.url(database).replace(f":{self._postgres.port}/", f":{self.port}/")

    def create_process(self) -> Process:
        """Write its two files for a user that is not root: as root it does not start."""
        program, user = find(), unprivileged.find_user()
        if program is None:
            raise ConfigError("no PgBouncer is installed: apt-get install pgbouncer")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        config, users = self.folder / "pgbouncer.ini", self.folder / "users.txt"
        ports = {"port": self.port, "postgres": self._postgres.port}
        write_private(config, _CONFIG.format(**ports, connections=SERVER_CONNECTIONS))
        parts = psycopg.conninfo.conninfo_to_dict(self._postgres.url("postgres"))
        write_private(users, f'"{parts["user"]}" "{parts["password"]}"\n')
        for path in (self.folder, config, users):
            if user is not None:
                os.chown(path, *user)
        return Process(
            [program, config.name],
            cwd=self.folder,
            log_path=self._log_path,
            ready=self._answers,
            name=self.name,
            user=user,
        )

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=5, prepare_threshold=None):
                return True
        except psycopg.OperationalError:  # not listening yet
            return False
