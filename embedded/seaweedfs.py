"""A real SeaweedFS: S3 on loopback, keys required, telemetry off."""

import contextlib
import http.client
import json
import signal
import time
from pathlib import Path
from typing import Final

from embedded import wheels
from embedded.credentials import write_private
from embedded.process import Process
from embedded.server import Server
from moorage.errors import ConfigError

# Every one of them: whatever is left out opens its default port, also when the part is switched off.
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


# Without it an acknowledged object is not yet on the disk. (The names of objects are written by the filer's own log,
# which has no such switch: this store survives crashes, not every power cut.)
_DURABLE: Final = {"locations": [{"locationPrefix": "/buckets/", "fsync": True}]}
_DURABLE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


class Seaweedfs(Server):
    """SeaweedFS with its data in `folder`, reached by one pair of keys that may do everything."""

    name = "seaweedfs"
    port_count = len(_PORTS)

    def __init__(self, folder: Path, access_key: str, secret_key: str, log_path: Path) -> None:
        super().__init__(folder)
        self._access_key, self._secret_key, self._log_path = access_key, secret_key, log_path
        self._note = self.folder / "ports.json"  # whose sockets in /tmp are ours, for a later clean-up

    @property
    def url(self) -> str:
        """Return the address of the S3 interface."""
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> Process:
        """Write the keys and return the process."""
        data = self.folder / "data"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        data.mkdir(mode=0o700, exist_ok=True)
        self.tidy()  # what a killed supervisor left
        write_private(self._note, json.dumps(self.ports))
        write_private(self.folder / "s3.json", json.dumps(self._identities()))
        return Process(
            [wheels.weed(), "mini", *self._flags()],
            cwd=self.folder,
            log_path=self._log_path,
            ready=self._answers,
            name=self.name,
            # It may take half a minute over a SIGTERM, and loses nothing by SIGKILL (measured): the next start need not
            # wait, and finds no socket that was made after its clean-up.
            death_signal=signal.SIGKILL,
            lock_path=self.folder / "lock",
        )

    def await_ready(self) -> None:
        """Wait until the server answers; at the first start, have it write every object through to the disk."""
        super().await_ready()
        filer, path = self.ports[_PORTS.index("filer.port")], "/etc/seaweedfs/filer.conf"
        until = time.monotonic() + _DURABLE_SECONDS
        while (status := _ask(filer, "GET", path)) != 200:
            if time.monotonic() > until:
                raise ConfigError(f"seaweedfs does not take {path} ({status}): see {self._log_path}")
            if _ask(filer, "PUT", path, json.dumps(_DURABLE)) != 201:
                time.sleep(_POLL_SECONDS)

    def tidy(self) -> None:
        """Remove the sockets that it leaves in /tmp."""
        if self._note.exists():
            for port in json.loads(self._note.read_text(encoding="utf-8")):
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 (the server's own choice)
                    with contextlib.suppress(PermissionError):  # another user's, of the same port on another day
                        left.unlink(missing_ok=True)

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
        return _ask(self.port, "GET", "/healthz") == 200


def _ask(port: int, method: str, path: str, body: str | None = None) -> int:
    """Return the status of an HTTP request to one of the server's ports, 0 when nobody answers."""
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request(method, path, body)
            return connection.getresponse().status
    except (OSError, http.client.HTTPException):  # not listening yet, or just killed
        return 0
