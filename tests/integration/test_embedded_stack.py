"""The embedded servers: real ones, for a newcomer's first minute and for every test after it."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from embedded import ports
from embedded.process import Process
from embedded.server import Server
from embedded.stack import Stack
from moorage.errors import ConfigError

DEADLINE_SECONDS = 90


def until(condition):
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "the state did not come"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@contextlib.contextmanager
def s3(stack):
    env = stack.environment()
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL_S3"],
        region_name=env["AWS_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )
    with contextlib.closing(client):
        yield client


def write(stack, mark):
    """Leave a mark in each of the three servers."""
    with psycopg.connect(stack.environment()["DATABASE_URL"]) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS marks (mark text)")
        conn.execute("INSERT INTO marks VALUES (%s)", (mark,))
    with redis.Redis.from_url(stack.environment()["CELERY_BROKER_URL"]) as client:
        client.set(mark, mark)
    with s3(stack) as client:
        if not client.list_buckets()["Buckets"]:
            client.create_bucket(Bucket="marks")
        client.put_object(Bucket="marks", Key=mark, Body=mark.encode())


def read(stack, mark):
    """Return what each of the three servers knows of a mark."""
    with psycopg.connect(stack.environment()["DATABASE_URL"]) as conn:
        row = conn.execute("SELECT mark FROM marks WHERE mark = %s", (mark,)).fetchone()
    with redis.Redis.from_url(stack.environment()["CELERY_BROKER_URL"]) as client:
        value = client.get(mark)
    with s3(stack) as client:
        body = client.get_object(Bucket="marks", Key=mark)["Body"].read()
    return [row and row[0], value and value.decode(), body.decode()]


def listening(pid):
    """Return the addresses that a process listens on, as (hex address, port)."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                found.add((address, int(port, 16)))
    return found


def test_all_three_answer(stack):
    """The environment is all that moorage's processes are given."""
    write(stack, "answers")

    assert read(stack, "answers") == ["answers"] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_listens_outside_loopback_or_on_a_fixed_port(stack):
    """A demo must not open a database to the network, nor collide with a second one."""
    for server in stack.servers:
        found = listening(server.pid)

        assert {address for address, _ in found} == {"0100007F"}, server.name
        assert {port for _, port in found} <= set(server.ports), server.name


def test_passwords_are_for_the_owner_only(stack):
    """Other users of the machine must not read them from a file, nor from the list of processes."""
    secrets = [stack.environment()[name] for name in ("AWS_SECRET_ACCESS_KEY", "CELERY_BROKER_URL", "DATABASE_URL")]
    secrets = [secret.rpartition("@")[0].rpartition(":")[2] or secret for secret in secrets]
    for server in stack.servers:
        shown = Path(f"/proc/{server.pid}/cmdline").read_bytes().decode()
        assert not any(secret in shown for secret in secrets)

    holders = [
        path
        for path in stack.folder.rglob("*.*")
        if path.is_file() and path.stat().st_size < 10_000 and any(s in path.read_text("latin-1") for s in secrets)
    ]

    assert {path.name for path in holders} == {"credentials.json", "valkey.conf", "s3.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


def test_wrong_passwords_are_refused(stack):
    """Loopback is shared by every user of the machine."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://moorage:wrong@127.0.0.1:{stack.postgres.port}/moorage")
    with (
        redis.Redis(port=stack.valkey.port, password="wrong", retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_the_servers_keep_what_they_acknowledge(stack):
    """Defaults of the wheels' own starters are made for throw-away tests."""
    with psycopg.connect(stack.postgres.url()) as conn:
        shown = {name: conn.execute(f"SHOW {name}").fetchone()[0] for name in ("fsync", "synchronous_commit")}
        checksums = conn.execute("SHOW data_checksums").fetchone()[0]
        version = conn.info.server_version // 10_000
    with redis.Redis.from_url(stack.valkey.url(), decode_responses=True) as client:
        kept = {**client.config_get("appendonly"), **client.config_get("maxmemory-policy")}

    assert shown == {"fsync": "on", "synchronous_commit": "on"}
    assert checksums == "on"
    assert version == 18
    assert kept == {"appendonly": "yes", "maxmemory-policy": "noeviction"}


@pytest.mark.parametrize("name", ["postgres", "valkey", "seaweedfs"])
def test_a_killed_server_comes_back_with_its_port_and_data(stack, name):
    """Crash tests kill servers, and workers go on with the addresses they know."""
    write(stack, f"killed {name}")
    server = getattr(stack, name)
    port, pid = server.port, server.pid

    server.kill()
    assert not server.is_running
    server.restart()

    assert (server.port, server.pid == pid) == (port, False)
    assert read(stack, f"killed {name}") == [f"killed {name}"] * 3


def test_postgres_comes_back_while_clients_are_connected(stack):
    """Its processes outlive a killed parent for a moment; a start in that moment must wait for them."""
    with contextlib.closing(psycopg.connect(stack.postgres.url())) as conn:
        conn.execute("CREATE TEMP TABLE busy AS SELECT generate_series(1, 100000)")

        for _ in range(3):
            stack.postgres.kill()
            stack.postgres.restart()

    assert stack.postgres.has_database("moorage")


def test_the_watch_restarts_what_died(stack):
    """`moorage up` goes on for weeks; a killed server must not need a person."""
    write(stack, "watched")
    assert stack.watch() == []
    stack.valkey.kill()
    stack.postgres.kill()

    restarted = stack.watch()

    assert sorted(restarted) == ["postgres", "valkey"]
    for server in stack.servers:
        server.await_ready()
    assert read(stack, "watched") == ["watched"] * 3


def test_databases_are_made_from_a_template(stack):
    """A test gets a migrated database of its own in milliseconds."""
    url = stack.postgres.create_database("mould")
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE cast_in (x int)")

    copy = stack.postgres.create_database("cast", template="mould")

    with psycopg.connect(copy) as conn:
        assert conn.execute("SELECT count(*) FROM cast_in").fetchone() == (0,)
        stack.postgres.drop_database("mould")
    stack.postgres.drop_database("cast")
    assert not stack.postgres.has_database("cast")


def test_a_folder_serves_one_stack_at_a_time(stack):
    """Two servers on one data folder would destroy it."""
    with pytest.raises(ConfigError, match="servers are already running"):
        Stack(stack.folder).start()

    assert stack.valkey.is_running


def test_two_stacks_do_not_collide_and_a_folder_can_be_started_again(stack, tmp_path):
    """Two checkouts on one machine; and tomorrow the demo's files are still there."""
    write(stack, "first")
    with Stack(tmp_path) as second:
        write(second, "second")
        assert not {p for s in stack.servers for p in s.ports} & {p for s in second.servers for p in s.ports}

    with Stack(tmp_path) as again:
        assert read(again, "second") == ["second"] * 3
        assert read(stack, "first") == ["first"] * 3


def left_outside():
    sockets = {path.name for path in Path("/tmp").glob("seaweedfs-*.sock")}
    return sockets | {path.name for path in Path("/var/tmp").glob("moorage-postgres-*")}


def test_a_stop_leaves_nothing_outside_the_folder(tmp_path):
    """Hard links and sockets in shared folders would pile up with every test run."""
    with Stack(tmp_path) as stack:
        ours = {f"seaweedfs-{part}-grpc-{port}.sock" for part in ("s3", "filer") for port in stack.seaweedfs.ports}
        ours |= {Path(p).name for p in note(stack)}
        assert left_outside() & ours

    assert not left_outside() & ours


def note(stack):
    """Return the folder in /var/tmp that a start as root makes."""
    file = stack.folder / "postgres18.copy"
    return [str(Path(file.read_text()).parents[1])] if file.exists() else []


def test_postgres_16_serves_as_well(tmp_path):
    """It is the oldest version the schema promises to run on."""
    stack = Stack(tmp_path, postgres_version=16)
    try:
        stack.postgres.start()
        with psycopg.connect(stack.postgres.url("postgres")) as conn:
            assert conn.info.server_version // 10_000 == 16
    finally:
        stack.stop()


@pytest.mark.parametrize("name", ["postgres", "valkey", "seaweedfs"])
def test_a_server_that_finds_its_port_taken_moves(tmp_path, name):
    """Between the choice of a port and its use a stranger may take it; each server says so in its own words."""
    server = getattr(Stack(tmp_path), name)
    server.ports = ports.free(server.port_count)
    with contextlib.closing(_listener()) as taken:
        server.ports[0] = taken.getsockname()[1]
        try:
            server.start()

            assert server.is_running
            assert taken.getsockname()[1] not in server.ports
        finally:
            server.stop()


class Talkative(Server):
    """Says at its first start that its port is taken, and then a long trace, as SeaweedFS does."""

    name = "talkative"

    def prepare(self):
        first = not (self.folder / "started").exists()
        (self.folder / "started").touch()
        said = "print('bind: address already in use', *range(40), sep='\\n'); raise SystemExit(255)"
        code = said if first else "import time; print('here I am', flush=True); time.sleep(60)"
        log = self.folder / "log"
        return Process([sys.executable, "-c", code], log_path=log, ready=lambda: "here I am" in log.read_text())


def test_a_taken_port_is_read_before_a_long_trace(tmp_path):
    """The last lines alone did not tell it, and the whole start failed."""
    server = Talkative(tmp_path)
    try:
        server.start()

        assert server.is_running
    finally:
        server.stop()


def test_no_two_processes_are_given_one_port(project_root):
    """Three test runs side by side chose one port twice, seconds before its server took it."""
    ask = "from embedded import ports; print(ports.free(300), flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with contextlib.ExitStack() as running:
        argv = [sys.executable, "-c", ask]
        others = [running.enter_context(subprocess.Popen(argv, cwd=project_root, **pipes)) for _ in range(4)]

        given = [port for other in others for port in json.loads(other.stdout.readline())]

        for other in others:
            other.communicate(b"\n")
    assert len(set(given)) == 4 * 300


def _listener():
    return socket.create_server(("127.0.0.1", 0))


def test_a_start_that_fails_says_why_and_leaves_nothing_running(tmp_path):
    """A damaged folder must show the server's own words, and the other two must not stay behind."""
    stack = Stack(tmp_path)
    stack.postgres.start()
    stack.postgres.stop()
    (stack.postgres.folder / "postgresql.conf").write_text("no_such_setting = 1\n")

    with pytest.raises(ConfigError, match=r"(?s)postgres did not start \(exit status 1\): .*no_such_setting"):
        stack.start()

    assert not any(server.is_running for server in stack.servers)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS tells no process of its parent's death")
def test_a_killed_supervisor_takes_the_servers_along(tmp_path):
    """An out-of-memory kill must not leave servers behind, and the next start must find the data."""
    code = f"""
import pathlib, time
from embedded.stack import Stack
stack = Stack(pathlib.Path({str(tmp_path)!r}))
stack.start()
print(*(server.pid for server in stack.servers), flush=True)
time.sleep(60)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as supervisor:
        pids = supervisor.stdout.readline().split()
        assert len(pids) == 3
        left = note(Stack(tmp_path))
        os.kill(supervisor.pid, signal.SIGKILL)

    with Stack(tmp_path) as again:  # at once: it waits for the former servers to end
        write(again, "after the kill")
        assert read(again, "after the kill") == ["after the kill"] * 3
        until(lambda: not any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in pids))
        assert not any(Path(path).exists() for path in left)


def _is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes folders that the server's user cannot enter")
def test_postgres_runs_as_root_in_a_closed_folder(tmp_path):
    """Containers and build machines are root, and a home of root is closed to the user that PostgreSQL runs as."""
    closed = Path(tempfile.mkdtemp(prefix="closed-"))
    closed.chmod(0o700)
    try:
        stack = Stack(closed / "stack")
        stack.postgres.start()
        assert Path(f"/proc/{stack.postgres.pid}").stat().st_uid != 0
        stack.stop()
    finally:
        shutil.rmtree(closed)


def test_a_platform_without_the_wheels_is_told_what_to_do(tmp_path, monkeypatch):
    """On Alpine, Windows or an Intel Mac the way is docker compose, and the message must say so."""

    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    stack = Stack(tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", none)

    with pytest.raises(ConfigError, match="docker compose up"):
        stack.start()
