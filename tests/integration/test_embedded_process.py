"""Start, readiness and end of a child process, which must leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedded.process import Process
from moorage.errors import ConfigError
from tests.support import fork_server

DEADLINE_SECONDS = 60


def until(condition):
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "state not reached"
        time.sleep(0.02)


def state_of(pid):
    """Return the letter of a process's state: Z is a zombie, T stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_alive(pid):
    """Return True if a process runs; a zombie does not."""
    try:
        return state_of(pid) != "Z"
    except FileNotFoundError:
        return False


def python(code, folder, **options):
    return Process([sys.executable, "-c", code], log_path=folder / "log", **options)


def test_start_waits_until_the_child_is_ready(tmp_path):
    """A client must be able to connect right after the start."""
    flag = tmp_path / "ready"
    code = f"import pathlib, time; time.sleep(0.3); pathlib.Path({str(flag)!r}).touch(); time.sleep(60)"
    process = python(code, tmp_path, ready=flag.exists)

    process.start()

    assert flag.exists()
    assert process.is_running
    process.stop()
    assert not process.is_running
    assert process.wait() == -signal.SIGTERM


def test_a_failed_start_shows_the_end_of_the_log(tmp_path):
    """The reason is in the log; the message must contain it."""
    (tmp_path / "log").write_text("lines of an earlier start\n")
    process = python("print('no such disk'); raise SystemExit(3)", tmp_path, ready=lambda: False, name="postgres")

    with pytest.raises(ConfigError) as failed:
        process.start()

    assert str(failed.value) == "postgres did not start (exit status 3): no such disk"


def test_an_interrupted_start_leaves_no_child(tmp_path):
    """Where the kernel does not end it with its supervisor, it stayed."""

    def interrupt():
        raise KeyboardInterrupt

    child = python("import time; time.sleep(60)", tmp_path, ready=interrupt)

    with pytest.raises(KeyboardInterrupt):
        child.start()

    assert not child.is_running


def test_a_child_that_does_not_stop_is_killed_with_its_children(tmp_path):
    """A worker that hangs in a decoder must not prevent the stack from stopping."""
    pids = tmp_path / "pids"
    code = f"""
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    pathlib.Path({str(pids)!r}).write_text(str(child))
time.sleep(60)
"""
    process = python(code, tmp_path, ready=lambda: pids.exists() and pids.read_text(), grace_seconds=0.2)
    process.start()

    process.stop()

    assert process.wait() == -signal.SIGKILL
    until(lambda: not is_alive(int(pids.read_text())))


def test_a_signal_to_the_group_reaches_the_children(tmp_path):
    """A worker that was stopped without its pool would go on working."""
    process = python("import subprocess; subprocess.run(['sleep', '60'])", tmp_path)
    process.start()
    until(process.list_children)
    (child,) = process.list_children()

    process.signal_group(signal.SIGSTOP)
    until(lambda: state_of(process.pid) == state_of(child) == "T")
    process.kill()

    until(lambda: not is_alive(child))
    assert process.list_children() == []
    process.signal_group(signal.SIGCONT)  # to nobody


@pytest.mark.parametrize("spawn", [Process.spawn, fork_server.spawn], ids=["executed", "forked"])
def test_a_process_that_has_ended_keeps_its_id_until_it_is_stopped(tmp_path, monkeypatch, spawn):
    """Its id is its group's: another process that got it meanwhile would be killed in its place."""
    monkeypatch.setattr(Process, "spawn", staticmethod(spawn))
    ended = Process(
        [sys.executable, "-m", "this"], env=dict(os.environ), cwd=tmp_path, log_path=tmp_path / "log", name="this"
    )
    ended.start()

    assert ended.wait(DEADLINE_SECONDS) == 0
    assert not ended.is_running
    os.kill(ended.pid, 0)  # raises ProcessLookupError if the id is free
    ended.stop()

    with pytest.raises(ProcessLookupError):
        os.kill(ended.pid, 0)
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("a group that may be another's was killed"))
    ended.stop()
    assert ended.wait() == 0


def test_a_process_stops_where_the_kernel_waits_for_children(tmp_path):
    """Some supervisors ignore SIGCHLD, which what they start inherits: stop and restart raised ChildProcessError."""
    code = f"""
import pathlib, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from embedded.process import Process
child = Process([sys.executable, "-c", "import time; time.sleep(60)"], log_path=pathlib.Path({str(tmp_path / "log")!r}))
for _ in range(2):
    child.start()
    assert child.is_running
    child.stop()
    assert not child.is_running
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_cannot_be_made_raises_its_error_alone(tmp_path):
    """What remained of it was reported, too, as an ignored TypeError."""
    code = """
from embedded.process import Child
try:
    Child(["x"], user="no such user")
except (KeyError, ValueError) as error:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_a_second_start_waits_for_the_previous_process(tmp_path):
    """Two servers on one data folder destroy it; a child of the previous server counts, too."""
    gone = tmp_path / "gone"
    code = f"""
import os, pathlib, time
if os.fork() == 0:
    os.setsid()
    time.sleep(0.5)
    pathlib.Path({str(gone)!r}).touch()
"""
    first = python(code, tmp_path, lock_path=tmp_path / "lock")
    first.start()
    assert first.wait(DEADLINE_SECONDS) == 0
    second = python("import time; time.sleep(60)", tmp_path, lock_path=tmp_path / "lock")

    second.start()

    assert gone.exists()
    second.stop()


def test_stopping_a_process_that_never_started_does_nothing(tmp_path):
    """A stack whose start failed half-way stops all its servers."""
    process = python("", tmp_path)

    process.stop()
    process.kill()

    assert process.pid is None
    assert process.wait(0) is None


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no parent death signal")
def test_a_child_ends_when_its_supervisor_is_killed(tmp_path):
    """A closed terminal or an out-of-memory kill must not leave servers running."""
    code = f"""
import pathlib, sys, time
from embedded.process import Process
child = Process([sys.executable, "-c", "import time; time.sleep(60)"], log_path=pathlib.Path({str(tmp_path / "log")!r}))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as supervisor:
        pid = int(supervisor.stdout.readline())
        assert is_alive(pid)

        os.kill(supervisor.pid, signal.SIGKILL)

    until(lambda: not is_alive(pid))


def test_a_large_log_is_rotated(tmp_path):
    """A stack that runs for months must not fill the disk with one file."""
    log = tmp_path / "log"
    log.write_bytes(b"x" * 10_000_001)

    process = python("print('new')", tmp_path)
    process.start()

    assert process.wait(DEADLINE_SECONDS) == 0
    assert log.read_text() == "new\n"
    assert (tmp_path / "log.1").stat().st_size == 10_000_001
