"""The embedded servers, as the demo and the tests use them."""

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

from embedded import ports, unprivileged
from embedded.postgres import Postgres
from embedded.process import Process
from embedded.server import Server
from embedded.stack import Stack
from moorage.errors import ConfigError
from worker.local_deployment import LocalDeployment

DEADLINE_SECONDS = 90


def until(condition):
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "state not reached"
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
    """Store a marker in each server."""
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
    """Return a marker as each server returns it."""
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


def test_all_servers_respond(stack):
    """The environment is all that moorage's processes get."""
    write(stack, "responds")

    assert read(stack, "responds") == ["responds"] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_listens_outside_loopback_or_on_a_fixed_port(stack):
    """A demo must not expose a database to the network, nor collide with a second one."""
    for server in stack.servers:
        found = listening(server.pid)

        assert {address for address, _ in found} == {"0100007F"}, server.name
        assert {port for _, port in found} <= set(server.ports), server.name


def test_passwords_are_readable_by_the_owner_only(stack):
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
    """Every user of the machine can connect to loopback."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://moorage:wrong@127.0.0.1:{stack.postgres.port}/moorage")
    with (
        redis.Redis(port=stack.valkey.port, password="wrong", retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_acknowledged_writes_are_durable(stack):
    """The wheels' own defaults are meant for throw-away tests."""
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
def test_a_killed_server_restarts_with_its_port_and_data(stack, name):
    """Crash tests kill servers, and workers keep the addresses they started with."""
    write(stack, f"killed {name}")
    server = getattr(stack, name)
    port, pid = server.port, server.pid

    server.kill()
    assert not server.is_running
    server.restart()

    assert (server.port, server.pid == pid) == (port, False)
    assert read(stack, f"killed {name}") == [f"killed {name}"] * 3


def test_postgres_restarts_while_clients_are_connected(stack):
    """Its backends outlive a killed postmaster for a moment; a start must wait for them."""
    with contextlib.closing(psycopg.connect(stack.postgres.url())) as conn:
        conn.execute("CREATE TEMP TABLE busy AS SELECT generate_series(1, 100000)")

        for _ in range(3):
            stack.postgres.kill()
            stack.postgres.restart()

    assert stack.postgres.has_database("moorage")


def test_dead_servers_are_restarted(stack):
    """`moorage up` runs for weeks; a killed server must not need an operator."""
    write(stack, "restarted")
    assert stack.restart_dead() == []
    stack.valkey.kill()
    stack.postgres.kill()

    restarted = stack.restart_dead()

    assert sorted(restarted) == ["postgres", "valkey"]
    for server in stack.servers:
        server.await_ready()
    assert read(stack, "restarted") == ["restarted"] * 3


def test_a_database_is_created_from_a_template(stack):
    """A test gets its own migrated database in milliseconds."""
    url = stack.postgres.create_database("template_a")
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE copied (x int)")

    copy = stack.postgres.create_database("copy_a", template="template_a")

    with psycopg.connect(copy) as conn:
        assert conn.execute("SELECT count(*) FROM copied").fetchone() == (0,)
        stack.postgres.drop_database("template_a")
    stack.postgres.drop_database("copy_a")
    assert not stack.postgres.has_database("copy_a")


def test_a_folder_serves_one_stack_at_a_time(stack):
    """Two servers on one data folder would destroy it."""
    with pytest.raises(ConfigError, match="servers are already running"):
        Stack(stack.folder).start()

    assert stack.valkey.is_running


def test_a_refused_start_leaves_the_files_of_the_running_stack(stack):
    """A second `moorage up` deleted PostgreSQL's binaries and SeaweedFS's sockets: no later restart succeeded."""
    ours = files_of(stack)

    with pytest.raises(ConfigError, match="servers are already running"), LocalDeployment(stack.folder):
        pass

    assert ours
    assert files_of(stack) == ours


def test_two_stacks_do_not_collide_and_a_folder_can_be_started_again(stack, tmp_path):
    """Two checkouts share a machine, and the data of a folder must survive."""
    write(stack, "first")
    with Stack(tmp_path) as second:
        write(second, "second")
        ours = files_of(second)
        assert ours
        assert not {p for s in stack.servers for p in s.ports} & {p for s in second.servers for p in s.ports}

    assert not files_outside() & ours, "hard links and sockets in shared folders accumulate with every test run"
    with Stack(tmp_path) as again:
        assert read(again, "second") == ["second"] * 3
        assert read(stack, "first") == ["first"] * 3


def files_outside():
    sockets = {path.name for path in Path("/tmp").glob("seaweedfs-*.sock")}
    return sockets | {path.name for path in Path("/var/tmp").glob("moorage-postgres-*")}


def files_of(stack):
    """Return the names of a stack's files in the shared folders."""
    sockets = {f"seaweedfs-{part}-grpc-{port}.sock" for part in ("s3", "filer") for port in stack.seaweedfs.ports}
    return files_outside() & sockets | {Path(p).name for p in copied_binaries(stack)}


def copied_binaries(stack):
    """Return the folder in /var/tmp that a start as root creates."""
    file = stack.folder / "postgres18.copy"
    return [str(Path(file.read_text()).parents[1])] if file.exists() else []


def test_postgres_16_starts(tmp_path):
    """It is the oldest version that the schema supports."""
    stack = Stack(tmp_path, postgres_version=16)
    try:
        stack.postgres.start()
        with psycopg.connect(stack.postgres.url("postgres")) as conn:
            assert conn.info.server_version // 10_000 == 16
    finally:
        stack.stop()


@pytest.mark.parametrize(
    "name", ["valkey", *(pytest.param(name, marks=pytest.mark.prove) for name in ("postgres", "seaweedfs"))]
)
def test_a_server_whose_port_is_in_use_changes_its_port(tmp_path, name):
    """Another program may bind a port between its reservation and its use; each server reports that differently."""
    server = getattr(Stack(tmp_path), name)
    server.ports = ports.reserve(server.port_count)
    with contextlib.closing(_listener()) as occupied:
        server.ports[0] = occupied.getsockname()[1]
        try:
            server.start()

            assert server.is_running
            assert occupied.getsockname()[1] not in server.ports
        finally:
            server.stop()


class TracingServer(Server):
    """Reports on its first start that its port is in use, followed by a long trace, like SeaweedFS."""

    name = "tracing"

    def create_process(self):
        first = not (self.folder / "started").exists()
        (self.folder / "started").touch()
        failing = "print('bind: address already in use', *range(40), sep='\\n'); raise SystemExit(255)"
        # not "ready", which the first start's "already in use" contains
        code = failing if first else "import time; print('serving', flush=True); time.sleep(60)"
        log = self.folder / "log"
        return Process([sys.executable, "-c", code], log_path=log, ready=lambda: "serving" in log.read_text())


def test_a_port_conflict_is_recognised_before_a_long_trace(tmp_path):
    """The last lines alone did not show it, and the whole start failed."""
    server = TracingServer(tmp_path)
    try:
        server.start()

        assert server.is_running
    finally:
        server.stop()


def test_no_two_processes_reserve_the_same_port(project_root):
    """Three concurrent test runs chose one port twice, seconds before its server bound it."""
    code = "from embedded import ports; print(ports.reserve(300), flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with contextlib.ExitStack() as running:
        argv = [sys.executable, "-c", code]
        others = [running.enter_context(subprocess.Popen(argv, cwd=project_root, **pipes)) for _ in range(4)]

        reserved = [port for other in others for port in json.loads(other.stdout.readline())]

        for other in others:
            other.communicate(b"\n")
    assert len(set(reserved)) == 4 * 300


def _listener():
    return socket.create_server(("127.0.0.1", 0))


def test_a_failed_start_reports_the_reason_and_leaves_nothing_running(tmp_path):
    """The error contains the server's own message, and the other servers are stopped."""
    stack = Stack(tmp_path)
    stack.postgres.start()
    stack.postgres.stop()
    (stack.postgres.folder / "postgresql.conf").write_text("no_such_setting = 1\n")

    with pytest.raises(ConfigError, match=r"(?s)postgres did not start \(exit status 1\): .*no_such_setting"):
        stack.start()

    assert not any(server.is_running for server in stack.servers)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no parent death signal")
def test_servers_end_with_a_killed_supervisor(tmp_path):
    """An out-of-memory kill must not leave servers running, and the next start must find the data."""
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
        leftovers = copied_binaries(Stack(tmp_path))
        os.kill(supervisor.pid, signal.SIGKILL)

    with Stack(tmp_path) as again:  # waits for the previous servers to end
        write(again, "after the kill")
        assert read(again, "after the kill") == ["after the kill"] * 3
        until(lambda: not any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in pids))
        assert not any(Path(path).exists() for path in leftovers)


def _is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_postgres_starts_although_another_process_has_its_old_pid(tmp_path):
    """Numbers are soon used again, above all in a container: every start was refused after a crash."""
    postgres = Postgres(tmp_path / "postgres18", "password", tmp_path / "log")
    postgres.start()
    postgres.kill()
    user = unprivileged.find_user()
    other = subprocess.Popen(["sleep", "600"], user=user and user.uid, group=user and user.gid)
    try:
        file = tmp_path / "postgres18/postmaster.pid"
        _, rest = file.read_text().split("\n", 1)
        file.write_text(f"{other.pid}\n{rest}")

        postgres.start()

        assert other.poll() is None
    finally:
        postgres.stop()
        other.kill()
        other.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes folders that the server's user cannot enter")
def test_postgres_runs_as_root_in_a_closed_folder(tmp_path):
    """Containers and build machines run as root, whose home is closed to the user of PostgreSQL."""
    closed = Path(tempfile.mkdtemp(prefix="closed-"))
    closed.chmod(0o700)
    try:
        stack = Stack(closed / "stack")
        stack.postgres.start()
        assert Path(f"/proc/{stack.postgres.pid}").stat().st_uid != 0
        stack.stop()
    finally:
        shutil.rmtree(closed)


def test_the_error_on_a_platform_without_wheels_names_the_alternative(tmp_path, monkeypatch):
    """Alpine, Windows and Intel Macs have no wheels: the message must name docker compose."""

    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    stack = Stack(tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", none)

    with pytest.raises(ConfigError, match="docker compose up"):
        stack.start()
