"""A complete local deployment: embedded servers and moorage's own processes, with a stand-in provider if given."""

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self

from db import migrate
from db.connection import connect
from embedded import ports
from embedded.credentials import write_private
from embedded.process import Process
from embedded.server import request_status
from embedded.stack import Stack
from moorage.settings import Settings
from storage import buckets, s3
from worker.launch import granian_flags, worker_flags

ROOT = Path(__file__).resolve().parent.parent
FIXED_PORTS = {"receiver": 8000, "s3": 8333, "flower": 5555, "metrics": 9464}
KEEP_CHILDREN = 3  # of a worker for files: they wait for hosts
INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "MOORAGE_FAILPOINT")


def data_folder(name: str) -> Path:
    """Return a command's data folder in MOORAGE_DATA_DIR, by default in .moorage."""
    return Path(os.environ.get("MOORAGE_DATA_DIR", ".moorage")) / name


class _Standin(Protocol):
    """A process that stands in for the providers."""

    def environment(self) -> dict[str, str]:
        """Return the settings that make it moorage's providers."""


class LocalDeployment:
    """A running moorage in one folder: servers, receiver, workers, beat, and optionally Flower."""

    def __init__(
        self,
        folder: Path,  # data, logs and passwords; they are reused by the next start
        *,
        keep_workers: int = 1,  # for the queue `keep`; `quick` and `sweeps` have one each, so that they never wait
        concurrency: int = 0,  # pool children of `quick` and `keep`; 0: two, and three where files wait for hosts
        beats: int = 1,
        flower: bool = False,
        fixed_ports: bool = False,  # those of the first start, else FIXED_PORTS: stored URLs must stay the same
        standin: _Standin | None = None,  # started and stopped by the caller, as `stack` if it is given
        stack: Stack | None = None,
        overrides: Mapping[str, str] | None = None,  # settings that differ from the defaults
    ) -> None:
        self.folder = folder
        self.stack = stack or Stack(folder)
        self._owns_stack = stack is None
        self._standin = standin
        self._overrides = dict(overrides or {})
        self._ports_file = folder / "ports.json" if fixed_ports else None
        self._counts = (keep_workers, concurrency, beats, flower)
        self.processes: dict[str, Process] = {}
        self.port = self.flower_port = self.metrics_port = 0
        self.moved_ports: dict[str, int] = {}  # fixed ports that were in use
        self.secrets = load_secrets(folder)

    @property
    def url(self) -> str:
        """Return the URL of receiver and API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def flower_url(self) -> str:
        return f"http://127.0.0.1:{self.flower_port}"

    def environment(self) -> dict[str, str]:
        """Return the complete environment of moorage's processes."""
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            "MOORAGE_DOTENV": "",  # a .env file has the settings of another deployment
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
            **self.stack.environment(),
            "PUBLIC_URL": self.url,
            "MOORAGE_METRICS_ADDRESS": f"127.0.0.1:{self.metrics_port}" if self.metrics_port else "off",
            "MOORAGE_API_TOKEN": self.secrets["api_token"],
            "FLOWER_BASIC_AUTH": f"moorage:{self.secrets['flower_password']}",
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
            **(self._standin.environment() if self._standin else {}),
            **self._overrides,
        }

    def start(self) -> None:
        """Start everything and return when it is ready. Raises ConfigError with the end of a log if a start fails."""
        wanted = FIXED_PORTS | ports.load(self._ports_file) if self._ports_file else {}
        stack = self.stack
        servers = {"s3": stack.seaweedfs, "PostgreSQL": stack.postgres, "broker": stack.valkey}
        if self._owns_stack:
            for name, server in servers.items():
                server.preferred_port = wanted.get(name)
            stack.start()
        self.port, self.flower_port, self.metrics_port = (
            ports.prefer(wanted[name]) if wanted else ports.reserve(1)[0] for name in ("receiver", "flower", "metrics")
        )
        if self._ports_file is not None:
            used = {"receiver": self.port, "flower": self.flower_port, "metrics": self.metrics_port}
            used |= {name: server.port for name, server in servers.items()}
            ports.store(self._ports_file, used)
            self.moved_ports = {name: port for name, port in wanted.items() if used[name] != port}
        conn = connect(self.environment()["DATABASE_URL"])
        migrate.migrate(conn)
        conn.close()
        self._ensure_buckets()
        self._add_processes()
        for process in self.processes.values():
            process.launch()
        for process in self.processes.values():
            process.await_ready()

    def stop(self) -> None:
        """Stop moorage's processes, then the servers."""
        if self.processes:  # concurrently: each takes a second or two
            with ThreadPoolExecutor(len(self.processes)) as pool:
                list(pool.map(Process.stop, self.processes.values()))
        if self._owns_stack:
            self.stack.stop()

    def restart_dead(self) -> list[str]:
        """Restart dead processes and return their names; call it about every second."""
        dead = [name for name, process in self.processes.items() if not process.is_running]
        for name in dead:
            self.processes[name].launch()
        return dead + (self.stack.restart_dead() if self._owns_stack else [])

    def add_worker(self, name: str, *flags: str, **overrides: str) -> Process:
        """Add a worker process, without starting it."""
        return self.add_process(name, worker_flags((*flags, "-n", f"{name}@%h")), **overrides)

    def _ensure_buckets(self) -> None:
        """Create the buckets before anything is served: an upload may arrive before a worker has created them."""
        environment = self.environment()
        given: Any = {"_env_file": None} | {name: environment[name] for name in self.stack.environment()}
        settings = Settings(**given)
        buckets.ensure_buckets(s3.ObjectStore(settings), settings, wait_seconds=120.0)  # on a busy machine

    def _add_processes(self) -> None:
        keep_workers, concurrency, beats, flower = self._counts
        flags = granian_flags("127.0.0.1", self.port)
        address = {"GRANIAN_HOST": "127.0.0.1", "GRANIAN_PORT": str(self.port)}  # for the line that it logs
        self.add_process("receiver", ["granian", *flags], (self.port, "/healthz"), **address)
        self.add_worker("quick", "-Q", "quick", "-c", str(concurrency or 2))
        self.add_worker("sweeps", "-Q", "sweeps", "-c", "1")
        for number in range(1, keep_workers + 1):
            self.add_worker(f"keep{number}", "-Q", "keep", "-c", str(concurrency or KEEP_CHILDREN))
        for number in range(1, beats + 1):
            self.add_process(f"beat{number}", ["worker", "beat"])
        if flower:
            flags = ["--address=127.0.0.1", f"--port={self.flower_port}"]
            self.add_process("flower", ["worker", "flower", *flags], (self.flower_port, "/healthcheck"))

    def add_process(
        self, name: str, module: Sequence[str], health: tuple[int, str] | None = None, /, **overrides: str
    ) -> Process:
        """Add a process of a module, not started. `health`: port and path that return 200 once it is ready."""
        logs_folder = self.folder / "logs"
        logs_folder.mkdir(parents=True, exist_ok=True)
        process = self.processes[name] = Process(
            [sys.executable, "-m", *module],
            env={**self.environment(), **overrides},
            cwd=ROOT,
            log_path=logs_folder / f"{name}.log",
            ready=(lambda: request_status(health[0], "GET", health[1], timeout_seconds=1) == 200) if health else None,
            name=name,
            grace_seconds=30.0,
        )
        return process

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def load_secrets(folder: Path) -> dict[str, str]:
    """Return the passwords of this folder, which the first call creates; only the owner can read them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secrets.json"
    if not path.exists():
        created = {"api_token": secrets.token_hex(24), "flower_password": secrets.token_hex(8)}
        write_private(path, json.dumps(created))
    loaded: dict[str, str] = json.loads(path.read_text())
    return loaded
