"""Forked test processes behave as started ones: arguments, environment, streams, working directory and end."""

import ast
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from tests.support import fork_server

ROOT = Path(__file__).resolve().parents[2]
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


def test_what_belongs_to_one_process_is_imported_again(tmp_path: Path) -> None:
    """It would have the environment of the server; and the end of one worker was that of all."""
    code = "import sys; print([(name, m.__file__) for name, m in sys.modules.items() if getattr(m, '__file__', None)])"

    done = fork_server.run(["-c", code], env=ENVIRONMENT, cwd=tmp_path)

    ours = [Path(file) for _, file in ast.literal_eval(done.stdout) if ROOT in Path(file).parents]
    ours = [file.relative_to(ROOT) for file in ours if ".venv" not in file.parts]
    assert len(ours) > 200
    own = {str(file) for file in ours if has_state_of_its_process((ROOT / file).read_text(encoding="utf-8"))}
    assert own == {f"{name.replace('.', '/')}.py" for name in fork_server.IMPORTED_AGAIN}


STATE = {"environ", "getenv", "get_settings", "load_settings", "mmap", "monotonic", "now", "socketpair", "urandom"}


def has_state_of_its_process(source: str) -> bool:
    """Return whether a module reads or makes such a thing outside its functions."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        used = (
            node.func
            if isinstance(node, ast.Call)
            else node.value
            if isinstance(node, ast.Attribute | ast.Subscript)
            else None
        )
        if isinstance(used, ast.Attribute) and used.attr in STATE:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return False


def test_a_failpoint_is_the_one_of_the_processs_own_environment(tmp_path: Path) -> None:
    """It is read when the module is imported, which was before the fork."""
    code = "from moorage.failpoints import failpoint; failpoint('here'); print('lived')"

    done = fork_server.run(["-c", code], env={**ENVIRONMENT, "MOORAGE_FAILPOINT": "here"}, cwd=tmp_path)
    other = fork_server.run(["-c", code], env={**ENVIRONMENT, "MOORAGE_FAILPOINT": "there"}, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert (other.returncode, other.stdout) == (0, "lived\n")


@pytest.mark.parametrize(
    ("code", "status"), [("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL), ("exit('no')", 1)]
)
def test_the_exit_status_is_the_processs_own(tmp_path: Path, code: str, status: int) -> None:
    """An error or a signal that looked like success would pass tests."""
    assert fork_server.run(["-c", code], env=ENVIRONMENT, cwd=tmp_path).returncode == status


def test_what_is_printed_is_seen_while_the_process_runs(tmp_path: Path) -> None:
    """Tests wait for a line of a log: with PYTHONUNBUFFERED it must not stay in a buffer until the end."""
    printed = tmp_path / "out"
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    with printed.open("wb") as out:
        code = "import time; print('ready'); time.sleep(600)"
        process = fork_server.popen(["-c", code], env=environment, cwd=tmp_path, stdout=out, stderr=out)
    try:
        end = time.monotonic() + 60
        while printed.read_text() != "ready\n":
            assert time.monotonic() < end, "the line did not come"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_what_takes_too_long_is_killed(tmp_path: Path) -> None:
    """A test that hangs must not leave its process running."""
    started = tmp_path / "pid"
    code = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    with pytest.raises(TimeoutExpired):
        fork_server.run(["-c", code], env=ENVIRONMENT, cwd=tmp_path, timeout=2)

    if started.exists() and sys.platform == "linux":
        with pytest.raises(ProcessLookupError):
            os.kill(int(started.read_text()), 0)
