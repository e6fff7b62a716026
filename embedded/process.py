"""A child process with a readiness check and a log, which never outlives its supervisor."""

import contextlib
import ctypes
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar, Final, NamedTuple

from moorage import logs
from moorage.errors import ConfigError

log = logs.get_logger(__name__)

_PR_SET_PDEATHSIG: Final = 1
# Loaded before the fork: code between fork and exec must not need a lock.
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_POLL_SECONDS: Final = 0.02
_LOG_MAX_BYTES: Final = 10_000_000
_TAIL_LINES: Final = 8


class User(NamedTuple):
    """The unprivileged user of a child process."""

    uid: int
    gid: int


class Child(subprocess.Popen[bytes]):
    """A child whose status can be read while its id, which is also its group's, stays taken."""

    def peek(self) -> int | None:
        """Return the exit status, None while it runs; leave the process to be waited for."""
        if self.returncode is not None or not hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            return self.poll()
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # the kernel waited for it: SIGCHLD is ignored, which a start inherits
            return self.poll()
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def __del__(self) -> None:
        if getattr(self, "pid", None):
            self.poll()  # one that has ended is no leak
        super().__del__()


class Process:
    """
    A child process in its own process group, so that Ctrl-C in the terminal does not reach it.

    Start it from the main thread: on Linux the kernel sends `death_signal` when the *thread* that started the child
    ends, so that it does not outlive a killed supervisor. macOS has no such signal.

    Args:
        env: the child's complete environment; None: that of this process.
        cwd: the working directory, entered before the user is changed.
        log_path: the file for output, in append mode (renamed to `.1` at a start above 10 MB).
        ready: polled until true while the child lives, without a limit: a recovery can take long.
        name: used in messages.
        user: None: the user of this process.
        grace_seconds: time between `stop_signal` and SIGKILL.
        death_signal: sent by the kernel when the supervisor dies.
        lock_path: a file that stays locked while the child or a child of it lives. A start waits for the lock, so that
            two servers never share one data folder.
        stale_path: a file of an earlier child, removed under the lock: it no longer says that a server runs.
    """

    spawn: ClassVar[Callable[..., Child]] = Child

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
        stale_path: Path | None = None,
    ) -> None:
        self.argv = [os.fspath(part) for part in argv]
        self.name = name or Path(self.argv[0]).name
        self.log_path = log_path
        self._env, self._cwd, self._ready, self._user = env, cwd, ready, user
        self._stop_signal, self._death_signal, self._grace = stop_signal, death_signal, grace_seconds
        self._lock_path, self._stale_path = lock_path, stale_path
        self._child: Child | None = None
        self._is_group_killed = False
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Return the process id, also after the process has ended; None before the first start."""
        return self._child.pid if self._child else None

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.peek() is None

    def start(self) -> None:
        """Start it and wait until it is ready. Raises ConfigError with the end of its log if it ends before that."""
        self.launch()
        try:
            self.await_ready()
        except BaseException:  # Ctrl-C, too
            self.stop()
            raise

    def launch(self) -> None:
        """Start it without waiting; do nothing if it is running."""
        if self.is_running:
            return
        if self._child is not None:
            self._child.wait()  # of an earlier start; what it left behind may run on
        with lock_file(self._lock_path, self.name) as lock, _open_log(self.log_path) as output:
            self._log_start = output.tell()
            if self._stale_path is not None:
                self._stale_path.unlink(missing_ok=True)
            self._child = self.spawn(
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
            self._is_group_killed = False

    def relaunch(self, **changes: str) -> None:
        """Stop it and start it with a changed environment."""
        self.stop()
        self._env = {**(os.environ if self._env is None else self._env), **changes}
        self.launch()

    def await_ready(self) -> None:
        while self._ready is not None and not self._ready():
            if not self.is_running:
                raise ConfigError(f"{self.name} did not start ({self._exit_reason()}): {self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Return the exit status (negative: a signal's number), None if it is still running at the timeout."""
        if self._child is None:
            return None
        until = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (status := self._child.peek()) is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        return status

    def stop(self) -> None:
        """Send `stop_signal`; kill the process group after the grace period. Do nothing if it has ended."""
        if self._child is None:
            return
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, self._stop_signal)
            if self.wait(self._grace) is None:
                log.warning("process.killed", name=self.name, pid=self._child.pid, grace_s=self._grace)
        self.kill()

    def kill(self) -> None:
        """Kill the process group with SIGKILL and wait for the process; do nothing if that was done before."""
        if self._child is None or self._is_group_killed:
            return
        self.signal_group(signal.SIGKILL)
        self._is_group_killed = True
        self._child.wait()

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children; do nothing before a start and after `kill`."""
        # Until the child is waited for, its id is not used for another process, whose group this would reach.
        if self._child is not None and not self._is_group_killed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    def list_children(self) -> list[int]:
        """Return the ids of the processes that it started and has not waited for, on Linux; none after its end."""
        children: list[int] = []
        for task in Path(f"/proc/{self.pid}/task").glob("*/children") if self.is_running else ():
            with contextlib.suppress(OSError):
                children += [int(child) for child in task.read_text().split()]
        return children

    def log_tail(self) -> str:
        return "\n".join(self.read_log(4000).strip().splitlines()[-_TAIL_LINES:]) or "no output"

    def read_log(self, max_bytes: int = _LOG_MAX_BYTES) -> str:
        """Return the end of the output since the last start, at most `max_bytes`."""
        with self.log_path.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - max_bytes))
            return file.read().decode(errors="replace")

    def _exit_reason(self) -> str:
        status = self.wait(0)
        return f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"


@contextlib.contextmanager
def lock_file(path: Path | None, name: str) -> Iterator[tuple[int, ...]]:
    """Lock the file. A child inherits the lock; the kernel releases it with the last process that holds it."""
    if path is None:
        yield ()
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(fd, name, path)
        yield (fd,)
    finally:
        os.close(fd)


def _acquire(fd: int, name: str, path: Path, timeout_seconds: float = 60.0) -> None:
    until = time.monotonic() + timeout_seconds
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise ConfigError(f"another {name} is still running in {path.parent}: stop it first") from error
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
        # Runs in the child after the change of user, which clears the setting.
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before this call
            os._exit(1)

    return bind
