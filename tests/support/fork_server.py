"""
Python processes forked from one that has imported the third-party packages and most of our modules already.

Importing them takes a second of processor time, hundreds of times in a run. The environment of a forked process, its
working directory, arguments, streams and exit status are its own, as after an exec. Not preloaded: what reads the
settings when it is imported, such as `worker.celery`, and what `python -m` runs.
Not for tests of what is imported, of memory, or of the start itself. Elsewhere than on Linux it is a plain process.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from embedded.process import Child

PRELOADED: Final = (
    "asyncio", "boto3.session", "botocore.config", "celery.app.task", "celery.apps.worker", "celery.bin.celery",
    "celery.concurrency.prefork", "celery.schedules", "click", "cryptography.exceptions",
    "cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography.hazmat.primitives.kdf.hkdf", "granian.cli",
    "jinja2", "jsonschema", "kombu.transport.pyamqp",
    "kombu.transport.redis", "PIL.Image", "PIL.ImageDraw", "PIL.ImageFont", "PIL.ImageSequence",
    "prometheus_client.core", "psycopg.rows", "pydantic_settings", "python_multipart", "redis", "requests",
    "rich.console", "rich.table", "starlette.applications", "uvloop",
)  # fmt: skip
# With what they import: nearly all that the processes need.
OUR_MODULES: Final = (
    "cli.commands.audit", "cli.commands.dead", "cli.commands.doctor.command", "cli.commands.cleanup",
    "cli.commands.processes", "cli.commands.recover", "cli.commands.show",
    "cli.commands.status", "receiver.app", "simulation.provider.server", "storage.s3", "web.asgi", "worker.boot",
    "worker.bootsteps", "worker.step_runner",
)  # fmt: skip
# When it is imported, one reads the environment, the other makes the memory that a worker shares with its children.
IMPORTED_AGAIN: Final = ("moorage.failpoints", "worker.shutdown")
_ROOT: Final = str(Path(__file__).resolve().parents[2])
_MAX_REQUEST_BYTES: Final = 1 << 17


class Forked:
    """A forked process: the methods of `subprocess.Popen` that tests use."""

    def __init__(self, server: "_Server", pid: int, args: Sequence[str]) -> None:
        self.pid, self.args = pid, list(args)
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"reap": self.pid})
        return self.returncode

    def peek(self) -> int | None:
        """Return the exit status, None while it runs, as `Child` does."""
        return self._server.ask({"peek": self.pid}) if self.returncode is None else self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raises subprocess.TimeoutExpired, as Popen does."""
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The client's side of the fork server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = self._start(theirs)

    def _start(self, theirs: socket.socket) -> Any:
        """Start the server and return what waits for its end."""
        return subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )

    def ask(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> Any:
        """Send a request with the standard streams of a new process, if any, and return the answer."""
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], list(fds))
            return json.loads(self._channel.recv(_MAX_REQUEST_BYTES))

    def close(self) -> None:
        """End the server, and with it what it started and still runs."""
        self._channel.close()
        self._process.wait()


class _ForkedServer(_Server):
    """One that is forked itself: by a process that has imported everything."""

    def _start(self, theirs: socket.socket) -> Any:
        pid = os.fork()
        if not pid:
            self._channel.close()
            os.setsid()
            with Path(os.devnull).open("r+b") as null:
                os.dup2(null.fileno(), 0)
                os.dup2(null.fileno(), 1)
            _serve_and_run(theirs)
        return pid

    def close(self) -> None:
        self._channel.close()
        os.waitpid(self._process, 0)


_running: list[_Server] = []


def start_forked() -> None:
    """Have the server forked from this process, which was forked itself and has no threads yet: an exec takes 2 s."""
    _running.append(_ForkedServer())


@atexit.register
def close() -> None:
    """End the server, if it was started."""
    while _running:
        _running.pop().close()


def popen(
    args: Sequence[str], *, env: Mapping[str, str], cwd: str | os.PathLike[str], stdout: IO[Any], stderr: IO[Any],
    stdin: IO[Any] | None = None, own_session: bool = False,
) -> "Forked | Child":  # fmt: skip
    """Start `python ARGS`, which begin with `-m MODULE` or `-c CODE`; a stream of None is the null device."""
    with contextlib.ExitStack() as null:
        source = null.enter_context(Path(os.devnull).open("rb")) if stdin is None else stdin
        if sys.platform != "linux":
            from embedded.process import Child  # not in the server, which has no path to it

            argv = [sys.executable, *args]
            return Child(argv, env=dict(env), cwd=cwd, stdin=source, stdout=stdout, stderr=stderr)
        if not _running:
            _running.append(_Server())
        request = {"args": list(args), "env": dict(env), "cwd": os.fspath(cwd), "own_session": own_session}
        pid = _running[0].ask(request, [source.fileno(), stdout.fileno(), stderr.fileno()])
    return Forked(_running[0], pid, args)


def spawn(
    argv: Sequence[str], *, env: Mapping[str, str] | None, cwd: Path | None, stdout: IO[Any], **options: Any
) -> "Forked | Child":
    """Replace `Process.spawn`: fork `python -m MODULE` of this interpreter; start anything else as it does."""
    if sys.platform != "linux" or tuple(argv[:2]) != (sys.executable, "-m") or env is None or cwd is None:
        from embedded.process import Child

        return Child(argv, env=env, cwd=cwd, stdout=stdout, **options)
    return popen(argv[1:], env=env, cwd=cwd, stdout=stdout, stderr=stdout, own_session=True)


def run(
    args: Sequence[str], *, env: Mapping[str, str], cwd: str | os.PathLike[str], stdin: str = "", timeout: float = 110
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGS` to its end and return status and output. It is killed at the time-out."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        source.write(stdin.encode())
        source.seek(0)
        process = popen(args, env=env, cwd=cwd, stdin=source, stdout=out, stderr=errors)
        try:
            status = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode().replace("\r\n", "\n"))
    return subprocess.CompletedProcess(list(args), status, *texts)


def _serve(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answer requests until the tests end. Returns in each forked process alone, with what it is to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pids: set[int] = set()
    while True:
        message, fds, _, _ = socket.recv_fds(channel, _MAX_REQUEST_BYTES, 3)
        if not message:
            for pid in pids:
                kill = os.killpg if os.getpgid(pid) == pid else os.kill
                kill(pid, signal.SIGKILL)
            sys.exit()
        request = json.loads(message)
        if pid := request.get("reap"):
            ended, status = os.waitpid(pid, os.WNOHANG)
            pids.discard(ended)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        elif pid := request.get("peek"):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            answer = found and (found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)
        elif answer := os.fork():
            pids.add(answer)
            for fd in fds:
                os.close(fd)
        else:
            channel.close()
            return request, fds
        channel.send(json.dumps(answer).encode())


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Make this forked process what an exec of the arguments would have made it, but for what is imported."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    if request["own_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    if "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # write_through would stop at its buffer
    sys.path[0] = request["cwd"]
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    for name in IMPORTED_AGAIN:
        importlib.reload(sys.modules[name])


def _preload() -> None:
    """Import modules, have botocore read its description of the S3 API, and build the routes of ours."""
    sys.path.insert(0, _ROOT)
    for name in (*PRELOADED, *OUR_MODULES):
        importlib.import_module(name)
    settings = sys.modules["moorage.settings"].Settings(
        _env_file=None, database_url="postgresql://u@127.0.0.1/d", broker_url="redis://127.0.0.1/0",
        aws_access_key_id="none", aws_secret_access_key="none",
    )  # fmt: skip
    sys.modules["storage.s3_clients"].S3Clients(settings).authenticated()
    sys.modules["web.routes"].build_router()
    del sys.path[0]
    gc.freeze()


def _run(args: Sequence[str]) -> int:
    """Run a module or code as a program and return its exit status; other exceptions than SystemExit are raised."""
    kind, subject, *rest = args
    sys.argv = [kind, *rest]
    try:
        if kind == "-m":
            runpy.run_module(subject, run_name="__main__", alter_sys=True)
        else:
            exec(compile(subject, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    return 0


def _exit(status: int) -> NoReturn:
    """End as the interpreter does, but do not take it apart first: that is 0.1 s of processor time in each process."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed
            stream.flush()
    os._exit(status)


def _serve_and_run(channel: socket.socket) -> NoReturn:
    with channel:
        request, fds = _serve(channel)
    _become(request, fds)
    _exit(_run(request["args"]))


if __name__ == "__main__":
    _preload()
    _serve_and_run(socket.socket(fileno=int(sys.argv[1])))
