"""What the three servers have in common: ports, a process, a restart on the same port and data."""

import re
from abc import ABC, abstractmethod
from pathlib import Path

from embedded import ports
from embedded.process import Process
from moorage import logs
from moorage.errors import ConfigError

log = logs.get_logger(__name__)

_PORT_TRIES = 5
_PORT_TAKEN = re.compile(r"already in use|is not available", re.IGNORECASE)


class Server(ABC):
    """One server on loopback with its data under one folder. The first port is the one that clients use."""

    name: str
    port_count = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.ports: list[int] = []
        self._process: Process | None = None
        self._clients_know = False  # the port was announced: it may not change any more

    @property
    def port(self) -> int:
        """Return the port that clients connect to; 0 before the first start."""
        return self.ports[0] if self.ports else 0

    @property
    def pid(self) -> int | None:
        """Return the id of the server's process, also after it ended; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Return whether the server's process lives."""
        return self._process is not None and self._process.is_running

    def start(self) -> None:
        """Start the server and return when it is ready."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start the server's process without waiting, on its former port if it had one."""
        if not self.is_running:
            self.ports = self.ports or ports.free(self.port_count)
            self._process = self.prepare()
            self._process.launch()

    def await_ready(self) -> None:
        """Wait until the server answers, for as long as its process lives. Raises ConfigError when it dies before."""
        for tries_left in reversed(range(_PORT_TRIES)):
            if self._process is None:
                return
            try:
                self._process.await_ready()
            except ConfigError as error:
                # In all that it wrote: a Go program's last words are a long trace.
                if not tries_left or not _PORT_TAKEN.search(self._process.written()):
                    raise
                self._move(error)
            else:
                self._clients_know = True
                return

    def stop(self) -> None:
        """Stop the server cleanly, or kill it after a grace, and remove what it left outside its folder."""
        if self._process is not None:
            self._process.stop()
        self.tidy()

    def kill(self) -> None:
        """End the server's process with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Stop the server if it runs and start it again on the same port and data."""
        if self.is_running:
            self.stop()
        self.start()

    def _move(self, error: ConfigError) -> None:
        """Try other ports: somebody took one between its choice and its use. The port clients know stays."""
        log.warning("server.port_taken", name=self.name, port=self.port, error=str(error))
        self.tidy()
        kept = self.ports[:1] if self._clients_know else []
        self.ports = kept + ports.free(self.port_count - len(kept))
        self.launch()

    @abstractmethod
    def prepare(self) -> Process:
        """Write what the server needs before a start and return its process, not started."""

    def tidy(self) -> None:  # noqa: B027 (most leave nothing)
        """Remove what the server leaves outside its folder."""
