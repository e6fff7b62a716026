"""An installed RabbitMQ, run in a folder of its own: the other broker, for tests. No wheel holds one."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

import amqp
import amqp.exceptions

from embedded.credentials import write_private
from embedded.process import Process
from embedded.server import Server
from moorage.errors import ConfigError

_USER: Final = "moorage"
_NODE: Final = "moorage@localhost"
# Debian's /usr/sbin/rabbitmq-server changes to a user of its own, who cannot enter our folder: the real script first.
_SCRIPTS: Final = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/local/sbin/rabbitmq-server")
_STOP_SECONDS: Final = 20.0
_IDLE: Final = "+sbwt none +sbwtdcpu none +sbwtdio none"  # its schedulers would spin for a while whenever they wait
# The write-ahead log of quorum queues is 512 MB by default.
_CONFIG: Final = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {user}
default_pass = {password}
raft.wal_max_size_bytes = 16000000
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
"""


def find() -> Path | None:
    """Return the path of an installed `rabbitmq-server` that can be run as any user, None when there is none."""
    there = [Path(script) for script in (*_SCRIPTS, shutil.which("rabbitmq-server") or "") if script]
    runnable = [script for script in there if script.is_file() and os.access(script, os.X_OK)]
    return runnable[0] if runnable and shutil.which("erl") and shutil.which("epmd") else None


class Rabbitmq(Server):
    """RabbitMQ with its data, cookie and logs in `folder`, loopback only, without plugins; its own name server too."""

    name = "rabbitmq"
    port_count = 3  # for clients, for other nodes, and of the name server (epmd)

    def __init__(self, folder: Path, password: str, log_path: Path) -> None:
        super().__init__(folder)
        self._password = password
        self._log_path = log_path
        self._names: Process | None = None

    @property
    def url(self) -> str:
        """Return the `amqp://` URL of the default virtual host."""
        return f"amqp://{_USER}:{self._password}@127.0.0.1:{self.port}//"

    def create_process(self) -> Process:
        """Write the configuration, start the name server and return the process. Raises ConfigError: not installed."""
        script = self._script()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        config = _CONFIG.format(port=self.port, user=_USER, password=self._password)
        write_private(self.folder / "rabbitmq.conf", config)
        (self.folder / "enabled_plugins").write_text("[].\n", encoding="utf-8")
        self._start_names()
        return Process(
            [script],
            env=self._environment(),
            cwd=self.folder,
            log_path=self._log_path,
            ready=self._answers,
            name=self.name,
            grace_seconds=_STOP_SECONDS,
            lock_path=self.folder / "lock",
        )

    def control(self, *args: str) -> None:
        """Run `rabbitmqctl` on the running server. Raises CalledProcessError when it refuses."""
        script = self._script().with_name("rabbitmqctl")
        env, folder = self._environment(), self.folder
        subprocess.run([script, *args], env=env, cwd=folder, check=True, capture_output=True, timeout=30)

    def remove_leftovers(self) -> None:
        """Stop the name server."""
        if self._names is not None:
            self._names.stop()
            self._names = None

    def _script(self) -> Path:
        script = find()
        if script is None:
            raise ConfigError("no RabbitMQ is installed: apt-get install rabbitmq-server, or use Valkey")
        return script

    def _start_names(self) -> None:
        """Start a name server that ends with us: Erlang would start one that stays."""
        if self._names is not None and self._names.is_running:
            return
        port = self.ports[2]
        self._names = Process(
            [shutil.which("epmd") or "epmd", "-port", str(port), "-address", "127.0.0.1"],
            env=self._environment(),
            cwd=self.folder,
            log_path=self._log_path,
            ready=lambda: _listens(port),
            name="epmd",
        )
        self._names.start()

    def _environment(self) -> dict[str, str]:
        _, dist_port, names_port = self.ports
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # the cookie is made there, for its owner alone
            "ERL_EPMD_PORT": str(names_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} " + _IDLE,
            # The script then becomes the server instead of waiting for it: signals reach it, and it ends with us.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-environment-of-the-machine"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "no-advanced"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
        }

    def _answers(self) -> bool:
        try:
            with amqp.Connection(
                host=f"127.0.0.1:{self.port}", userid=_USER, password=self._password, connect_timeout=2, read_timeout=2
            ) as connection:
                return bool(connection.connected)
        except (OSError, amqp.exceptions.AMQPError):  # not listening yet, or its users are not made yet
            return False


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
