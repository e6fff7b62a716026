"""Base class of the servers: ports, a process, a restart on the same port and data; and a request to one."""

import contextlib
import http.client
import re
from abc import ABC, abstractmethod
from pathlib import Path

from embedded import ports
from embedded.process import Process
from moorage import logs
from moorage.errors import ConfigError

log = logs.get_logger(__name__)

_PORT_ATTEMPTS = 5
_PORT_TAKEN = re.compile(r"already in use|is not available", re.IGNORECASE)


class Server(ABC):
    """One server on loopback with its data in one folder. Clients use the first port."""

    name: str
    port_count = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.ports: list[int] = []
        self.preferred_port: int | None = None  # for clients, if it is free
        self._process: Process | None = None
        self._has_leftovers = False  # of its own; before a start, those in the folder are of another process
        self._is_announced = False  # clients know the port: it must not change any more

    @property
    def port(self) -> int:
        """Return the port for clients; 0 before the first start."""
        return self.ports[0] if self.ports else 0

    @property
    def pid(self) -> int | None:
        """Return the process id, also after the process has ended; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start the process without waiting, on its previous port if it had one."""
        if not self.is_running:
            if not self.ports:
                self.ports = ports.reserve(self.port_count)
                if self.preferred_port is not None:
                    self.ports[0] = ports.prefer(self.preferred_port)
            self._has_leftovers = True
            self._process = self.create_process()
            self._process.launch()

    def await_ready(self) -> None:
        """Wait until the server responds, without a limit while its process lives. Raises ConfigError if it dies."""
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            if self._process is None:
                return
            try:
                self._process.await_ready()
            except ConfigError as error:
                # Search the whole output: a Go program ends with a long trace.
                if not attempts_left or not _PORT_TAKEN.search(self._process.read_log()):
                    raise
                self._change_ports(error)
            else:
                self._is_announced = True
                return

    def stop(self) -> None:
        """Stop the server, kill it after its grace period, and remove its files outside its folder."""
        if self._process is not None:
            self._process.stop()
        if self._has_leftovers:
            self.remove_leftovers()
            self._has_leftovers = False

    def kill(self) -> None:
        """Kill the process with SIGKILL, like a crash."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Stop the server if it is running and start it on the same port and data."""
        if self.is_running:
            self.stop()
        self.start()

    def _change_ports(self, error: ConfigError) -> None:
        """Retry on other ports: another process bound one after its reservation. An announced port stays."""
        log.warning("server.port_taken", name=self.name, port=self.port, error=str(error))
        self.remove_leftovers()
        announced = self.ports[:1] if self._is_announced else []
        self.ports = announced + ports.reserve(self.port_count - len(announced))
        self.launch()

    @abstractmethod
    def create_process(self) -> Process:
        """Write configuration and data folder, and return the process, not started."""

    def remove_leftovers(self) -> None:  # noqa: B027 (most servers have none)
        """Remove the files that the server leaves outside its folder."""


def request_status(port: int, method: str, path: str, body: str | None = None, *, timeout_seconds: float = 10.0) -> int:
    """Return the status of an HTTP request to a port on loopback, 0 without a response."""
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)) as connection:
            connection.request(method, path, body)
            return connection.getresponse().status
    except (OSError, http.client.HTTPException):  # not listening yet, or killed
        return 0
