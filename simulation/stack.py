"""All of moorage on this machine: embedded servers, a stand-in provider if asked for, and our own processes."""

import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from db import migrate
from db.connection import connect
from embedded import ports
from embedded.process import Process
from embedded.stack import Stack
from simulation.provider.client import Standin
from worker.launch import granian_flags, worker_flags

ROOT = Path(__file__).resolve().parent.parent


def data_folder(name: str) -> Path:
    """Return where a command keeps its data: in MOORAGE_DATA_DIR, .moorage if that is not set."""
    return Path(os.environ.get("MOORAGE_DATA_DIR", ".moorage")) / name


class Local:
    """
    A running moorage under one folder: servers, receiver, workers, beat, and Flower if asked for.

    Args:
        folder: data, logs and passwords; a second start on it finds what the first left.
        keep_workers: Celery processes for the queue `keep`; one more serves `quick` alone, so that sweeps never wait.
        concurrency: pool children of each of them.
        standin: a provider to talk to, started and stopped by the caller.
        overrides: settings that differ from the defaults, as environment variables.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_workers: int = 1,
        concurrency: int = 2,
        beats: int = 1,
        flower: bool = False,
        standin: Standin | None = None,
        stack: Stack | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.stack = stack or Stack(folder)
        self._owns_stack = stack is None
        self._standin = standin
        self._overrides = dict(overrides or {})
        self._counts = (keep_workers, concurrency, beats, flower)
        self.processes: dict[str, Process] = {}
        self.port = 0
        self.flower_port = 0
        self.secrets = _secrets(folder)

    @property
    def url(self) -> str:
        """Return where receiver and API listen."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def flower_url(self) -> str:
        """Return where Flower listens."""
        return f"http://127.0.0.1:{self.flower_port}"

    def environment(self) -> dict[str, str]:
        """Return the whole environment of our processes."""
        kept = {
            key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LANG", "MOORAGE_FAILPOINT") if key in os.environ
        }
        return {
            **kept,
            "MOORAGE_DOTENV": "",  # the settings of a deployment are not those of this stack
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
            **self.stack.environment(),
            "PUBLIC_URL": self.url,
            "MOORAGE_API_TOKEN": self.secrets["api_token"],
            "FLOWER_BASIC_AUTH": f"moorage:{self.secrets['flower_password']}",
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
            **(self._standin.environment() if self._standin else {}),
            **self._overrides,
        }

    def start(self) -> None:
        """Start everything and return when it serves. Raises ConfigError with the end of a log when it cannot."""
        if self._owns_stack:
            self.stack.start()
        self.port, self.flower_port = ports.reserve(2)
        conn = connect(self.environment()["DATABASE_URL"])
        migrate.migrate(conn)
        conn.close()
        self._make_processes()
        for process in self.processes.values():
            process.launch()
        for process in self.processes.values():
            process.await_ready()

    def stop(self) -> None:
        """Stop our processes, then the servers."""
        if self.processes:  # all at once: each takes a second or two over it
            with ThreadPoolExecutor(len(self.processes)) as pool:
                list(pool.map(Process.stop, self.processes.values()))
        if self._owns_stack:
            self.stack.stop()

    def restart_dead(self) -> list[str]:
        """Start again what has died; returns the names. Call it each second."""
        dead = [name for name, process in self.processes.items() if not process.is_running]
        for name in dead:
            self.processes[name].launch()
        return dead + (self.stack.restart_dead() if self._owns_stack else [])

    def add_worker(self, name: str, *flags: str, **overrides: str) -> Process:
        """Make one more worker process, not started yet."""
        argv = [sys.executable, "-m", "celery", *worker_flags((*flags, "-n", f"{name}@%h"))]
        process = self._process(name, argv, overrides=overrides)
        self.processes[name] = process
        return process

    def _make_processes(self) -> None:
        keep_workers, concurrency, beats, flower = self._counts
        python = sys.executable
        self.processes["receiver"] = self._process(
            "receiver",
            [python, "-m", "granian", *granian_flags("127.0.0.1", self.port)],
            ready_url=f"{self.url}/healthz",
        )
        self.add_worker("quick", "-Q", "quick", "-c", str(concurrency))
        for number in range(1, keep_workers + 1):
            self.add_worker(f"keep{number}", "-Q", "keep", "-c", str(concurrency))
        for number in range(1, beats + 1):
            self.processes[f"beat{number}"] = self._process(
                f"beat{number}", [python, "-m", "celery", "-A", "worker", "beat"]
            )
        if flower:
            self.processes["flower"] = self._process(
                "flower",
                [python, "-m", "celery", "-A", "worker", "flower", "--address=127.0.0.1", f"--port={self.flower_port}"],
                ready_url=f"{self.flower_url}/healthcheck",
            )

    def _process(
        self,
        name: str,
        argv: Sequence[str],
        *,
        ready_url: str | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> Process:
        logs_folder = self.folder / "logs"
        logs_folder.mkdir(parents=True, exist_ok=True)
        return Process(
            argv,
            env={**self.environment(), **(overrides or {})},
            cwd=ROOT,
            log_path=logs_folder / f"{name}.log",
            ready=(lambda: _answers(ready_url)) if ready_url else None,
            name=name,
            grace_seconds=30.0,
        )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 (our own loopback address)
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _secrets(folder: Path) -> dict[str, str]:
    """Return the passwords of this folder, made once, readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secrets.json"
    if not path.exists():
        made = {"api_token": secrets.token_hex(24), "flower_password": secrets.token_hex(8)}
        with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
            json.dump(made, file)
    loaded: dict[str, str] = json.loads(path.read_text())
    return loaded
