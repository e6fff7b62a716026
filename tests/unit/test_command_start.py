"""The start of commands: Ctrl-C, the receiver's port, and `moorage init`."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import start
from cli.commands import init, processes
from moorage.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SLOW = "import sys, time; sys.stdout.write('importing' + chr(10)); sys.stdout.flush(); time.sleep(60)"


@pytest.mark.parametrize("started_as", ["-m cli.start slow", "-c import cli.start; cli.start.run()"])
def test_ctrl_c_during_an_import_prints_no_traceback(started_as: str, tmp_path: Path) -> None:
    """Imports take up to a second, in which Ctrl-C printed up to seventy lines."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "dotenv.py").write_text(SLOW)  # one that cli.main imports
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, *started_as.split(" ", 1 if "-c" in started_as else 2)]

    # A job that a shell starts in the background inherits that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)

    assert (process.returncode, printed) == (-signal.SIGINT, b"")


def test_sigterm_ends_process_1_of_a_container_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has no default for it there: a receiver that was stopped in its first second ran on until SIGKILL."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as the command does before it becomes the program
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            start._end_at_interrupt()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    assert ended.value.code == 143


def test_the_console_script_starts_there() -> None:
    """`moorage` is what pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project["scripts"] == {"moorage": "cli.start:run"}


@pytest.fixture
def shared_port() -> Iterator[int]:
    """Return a port at which another receiver listens, as granian does: it may be shared."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_of_another_receiver_is_shared_only_on_demand(shared_port: int) -> None:
    """Every second webhook would go to a forgotten process with other settings."""
    with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{shared_port} \(Address already in use\)"):
        processes._find_free_address("127.0.0.1", shared_port, share=False)

    assert processes._find_free_address("127.0.0.1", shared_port, share=True) == "127.0.0.1"


def test_a_port_of_another_program_cannot_be_shared() -> None:
    """granian panics with 54 frames."""
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="choose another --port"):
        processes._find_free_address("127.0.0.1", other.getsockname()[1], share=True)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_of_this_machine_is_one_line(host: str) -> None:
    """A wrong address is as usual as a wrong port."""
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:8000"):
        processes._find_free_address(host, 8000, share=False)


def test_init_writes_what_compose_requires_once(tmp_path: Path) -> None:
    """A default secret would be everybody's; a second run must not change the passwords of a database that exists."""
    file = tmp_path / ".env"

    first = CliRunner().invoke(init.init, ["--file", str(file)])
    text = file.read_text(encoding="utf-8")
    second = CliRunner().invoke(init.init, ["--file", str(file)])

    values = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.MULTILINE))
    required = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    assert first.exit_code == 0, first.output
    assert {name for name in required if not values[name]} == set()
    assert len({values[name] for name in init.SECRETS}) == len(init.SECRETS)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert isinstance(second.exception, ConfigError)
    assert file.read_text(encoding="utf-8") == text
