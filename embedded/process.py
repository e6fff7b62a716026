"""One child process: started, watched, stopped, and never left behind when its supervisor dies."""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from moorage import logs
from moorage.errors import ConfigError

log = logs.get_logger(__name__)

_PR_SET_PDEATHSIG: Final = 1
# Loaded before the fork: between fork and exec only what cannot need a lock may run.
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_POLL_SECONDS: Final = 0.02
_LOG_MAX_BYTES: Final = 10_000_000
_TAIL_LINES: Final = 8


class User(NamedTuple):
    """An unprivileged user that a child runs as."""

    uid: int
    gid: int


class Process:
    """
    A child process in a group of its own, so that a Ctrl-C at the terminal does not reach it.

    Start it from the main thread: on Linux the kernel sends `death_signal` to it when the *thread* that started it
    ends, which is how a child ends with a supervisor that was killed. macOS has no such signal.

    Args:
        argv: the program and its arguments.
        env: the child's whole environment; None: this process's.
        cwd: its working directory, entered before the user is changed.
        log_path: the file its output is appended to (put aside as `.1` at a start above 10 MB).
        ready: asked until it is true, for as long as the child lives: a recovery may take its time.
        name: what messages call it.
        user: whom it runs as; None: the user of this process.
        stop_signal: what asks it to end.
        grace_seconds: how long it may take to end before it is killed.
        death_signal: what it gets when its supervisor dies.
        lock_path: a file that is locked for as long as the child, or a child of it, lives. A start waits until the
            former one is gone, so that two never share one data folder.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log_path: Path = Path(os.devnull),
        ready: Callable[[], bool] | None = None,
        *,
        name: str | None = None,
        user: User | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 8.0,
        death_signal: signal.Signals = signal.SIGTERM,
        lock_path: Path | None = None,
    ) -> None:
        self.argv = [os.fspath(part) for part in argv]
        self.name = name or Path(self.argv[0]).name
        self.log_path = log_path
        self._env, self._cwd, self._ready, self._user = env, cwd, ready, user
        self._stop_signal, self._death_signal, self._grace = stop_signal, death_signal, grace_seconds
        self._lock_path = lock_path
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Return the id of the process, also after it ended; None before the first start."""
        return self._child.pid if self._child else None

    @property
    def is_running(self) -> bool:
        """Return whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it and wait until it is ready. Raises ConfigError with the end of its log when it ends before."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start it without waiting. Does nothing while it runs."""
        if self.is_running:
            return
        with self._lock() as lock, _open_log(self.log_path) as output:
            self._log_start = output.tell()
            self._child = subprocess.Popen(
                self.argv,
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=lock,
                preexec_fn=_bind_to_parent(self._death_signal),
                user=self._user and self._user.uid,
                group=self._user and self._user.gid,
                extra_groups=self._user and (),
            )

    def await_ready(self) -> None:
        """Wait until it is ready, for as long as it lives."""
        while self._ready is not None and not self._ready():
            if not self.is_running:
                raise ConfigError(f"{self.name} did not start ({self._ending()}): {self.tail()}")
            time.sleep(_POLL_SECONDS)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Return its exit status (negative: the signal that ended it), or None when it outlives the time."""
        if self._child is None:
            return None
        try:
            return self._child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Ask it to end; kill it and its group after the grace. Does nothing when it has ended."""
        if self._child is None:
            return
        if self.is_running:
            self._child.send_signal(self._stop_signal)
            if self.wait(self._grace) is None:
                log.warning("process.killed", name=self.name, pid=self._child.pid, grace_s=self._grace)
        self.kill()

    def kill(self) -> None:
        """Kill it and its process group with SIGKILL, and wait for its end."""
        if self._child is None:
            return
        # The group outlives its leader as long as a member lives, and its id is not used again meanwhile.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def tail(self) -> str:
        """Return the last lines it wrote since its last start."""
        return "\n".join(self.written(4000).strip().splitlines()[-_TAIL_LINES:]) or "it wrote nothing"

    def written(self, max_bytes: int = _LOG_MAX_BYTES) -> str:
        """Return what it wrote since its last start, only the end of it when that is more."""
        with self.log_path.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - max_bytes))
            return file.read().decode(errors="replace")

    def _ending(self) -> str:
        status = self.wait(0)
        return f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[tuple[int, ...]]:
        """Hold the lock file; the child inherits it, and the kernel frees it with the last process that has it open."""
        if self._lock_path is None:
            yield ()
            return
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _acquire(fd, self.name, self._lock_path)
            yield (fd,)
        finally:
            os.close(fd)


def _acquire(fd: int, name: str, path: Path, patience_seconds: float = 60.0) -> None:
    until = time.monotonic() + patience_seconds
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise ConfigError(f"another {name} still runs on the folder {path.parent}: stop it first") from error
        time.sleep(_POLL_SECONDS)


def _open_log(path: Path) -> IO[bytes]:
    if path.is_file() and path.stat().st_size > _LOG_MAX_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    file = path.open("ab")
    file.seek(0, os.SEEK_END)
    return file


def _bind_to_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    if _LIBC is None:
        return None
    prctl, parent, number = _LIBC.prctl, os.getpid(), int(death_signal)

    def bind() -> None:
        # Runs in the child after the change of user, which would clear the setting.
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return bind
