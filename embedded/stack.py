"""The embedded servers in one folder: PostgreSQL, Valkey and SeaweedFS, started and stopped together."""

import contextlib
import os
from pathlib import Path
from typing import Self

from embedded import credentials, folders
from embedded.postgres import Postgres
from embedded.seaweedfs import Seaweedfs
from embedded.server import Server
from embedded.valkey import Valkey
from embedded.wheels import PostgresVersion
from moorage import logs

log = logs.get_logger(__name__)

_DATABASE = "moorage"


class Stack:
    """
    Three servers on free loopback ports, with data, logs and passwords in one folder.

    Start it from the main thread: on Linux the servers end when the thread that started them ends. A folder can be
    started again later, also after a crash; then only the ports differ, unless the former ones are preferred.
    """

    def __init__(self, folder: Path, *, postgres_version: PostgresVersion = 18) -> None:
        self.folder = Path(folder).resolve()
        folders.create(self.folder)
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        keys = self._keys = credentials.load_or_create(self.folder / "credentials.json")
        logs_folder = self.folder / "logs"
        self.postgres = Postgres(
            self.folder / f"postgres{postgres_version}",
            keys.postgres_password,
            logs_folder / "postgres.log",
            postgres_version,
        )
        self.valkey = Valkey(self.folder / "valkey", keys.valkey_password, logs_folder / "valkey.log")
        self.seaweedfs = Seaweedfs(
            self.folder / "seaweedfs", keys.s3_access_key, keys.s3_secret_key, logs_folder / "seaweedfs.log"
        )
        self._lock: int | None = None

    @property
    def servers(self) -> tuple[Server, ...]:
        """Return the servers, the slowest to start first."""
        return (self.seaweedfs, self.valkey, self.postgres)

    def start(self) -> None:
        """Start all servers and wait until they are ready. Raises ConfigError if one fails; then none is running."""
        if self._lock is None:
            self._lock = folders.lock(self.folder)
        try:
            for server in self.servers:
                server.launch()
            for server in self.servers:
                server.await_ready()
            if not self.postgres.has_database(_DATABASE):
                self.postgres.create_database(_DATABASE)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        with contextlib.ExitStack() as stops:
            for server in self.servers:
                stops.callback(server.stop)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restart_dead(self) -> list[str]:
        """
        Restart each dead server on its port and data, and return the names. Does not wait until they are ready.

        Call it about every second from the thread that called `start`.
        """
        if self._lock is None:
            return []
        dead = [server for server in self.servers if not server.is_running]
        for server in dead:
            log.warning("server.restarted", name=server.name, port=server.port)
            server.launch()
        return [server.name for server in dead]

    def environment(self) -> dict[str, str]:
        """Return the settings of moorage's processes for these servers."""
        return {
            "DATABASE_URL": self.postgres.url(_DATABASE),
            "CELERY_BROKER_URL": self.valkey.url(),
            "AWS_ENDPOINT_URL_S3": self.seaweedfs.url,
            "AWS_ACCESS_KEY_ID": self._keys.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self._keys.s3_secret_key,
            "AWS_SESSION_TOKEN": "",  # the caller's, of another store
            "AWS_SECURITY_TOKEN": "",
            "AWS_REGION": "us-east-1",
            "S3_PUBLIC_BUCKET": "moorage-public",
            "S3_PRIVATE_BUCKET": "moorage-private",
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
