"""Forked test processes behave as started ones: arguments, environment, streams, working directory and end."""

import os
import signal
import sys
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from tests.support import fork_server

ENVIRONMENT = {"PATH": os.environ["PATH"], "GIVEN": "x"}


def test_a_process_has_what_it_was_given(tmp_path: Path) -> None:
    """What leaked in from the tests' own process would make every test of a command line worthless."""
    code = "import os, sys; print(os.getcwd(), dict(os.environ), sys.argv, sys.stdin.read()); sys.stderr.write('e')"

    done = fork_server.run(["-c", code, "a", "b"], env=ENVIRONMENT, cwd=tmp_path, stdin="hé")

    assert done.returncode == 0
    assert done.stdout.strip() == f"{tmp_path} {ENVIRONMENT} ['-c', 'a', 'b'] hé"
    assert done.stderr == "e"


def test_a_module_is_run_as_a_program(tmp_path: Path) -> None:
    """`python -m` sets the name and the arguments, and finds modules in the working directory and PYTHONPATH."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "other.py").write_text("FACT = 7")
    (tmp_path / "program.py").write_text("import other, sys; print(__name__, sys.argv[1:], other.FACT); sys.exit(3)")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path / "beside")}

    done = fork_server.run(["-m", "program", "--flag"], env=environment, cwd=tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (3, "__main__ ['--flag'] 7\n", "")


def test_our_own_modules_are_not_preloaded(tmp_path: Path) -> None:
    """Some read the environment when they are imported, such as the failpoint to crash at."""
    ours = {path.parent.name for path in Path(__file__).parents[2].glob("*/__init__.py")}
    code = f"import sys; print({ours!r} & {{name.partition('.')[0] for name in sys.modules}})"

    done = fork_server.run(["-c", code], env=ENVIRONMENT, cwd=tmp_path)

    assert len(ours) > 9
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("code", "status"), [("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL), ("exit('no')", 1)]
)
def test_the_exit_status_is_the_processs_own(tmp_path: Path, code: str, status: int) -> None:
    """An error or a signal that looked like success would pass tests."""
    assert fork_server.run(["-c", code], env=ENVIRONMENT, cwd=tmp_path).returncode == status


def test_what_takes_too_long_is_killed(tmp_path: Path) -> None:
    """A test that hangs must not leave its process running."""
    started = tmp_path / "pid"
    code = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    with pytest.raises(TimeoutExpired):
        fork_server.run(["-c", code], env=ENVIRONMENT, cwd=tmp_path, timeout=2)

    if started.exists() and sys.platform == "linux":
        with pytest.raises(ProcessLookupError):
            os.kill(int(started.read_text()), 0)
