"""What PostgreSQL refuses: which error each SQLSTATE becomes, and what happens to the connection."""

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from db.connection import Connection, Database, connect
from embedded import unprivileged
from embedded.stack import Stack
from moorage.errors import DatabaseUnavailable
from tests.integration import command_line as cli
from tests.integration import web_process
from tests.integration.core import wait_until, world
from tests.support import fork_server

INSERT = "INSERT INTO pauses (target, paused_by) VALUES ('keep', 'test')"
BACKEND = "SELECT pg_backend_pid() AS pid"


@contextlib.contextmanager
def read_only(conn: Connection) -> Iterator[None]:
    """Have the server refuse the writes of new connections, as a standby or a managed server with a full disk does."""
    name = conn.info.dbname
    conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        yield
    finally:
        conn.execute(
            f"SET default_transaction_read_only = off; ALTER DATABASE {name} RESET default_transaction_read_only"
        )


def backend(database: Database) -> int:
    """Return the server process of the present connection."""
    return database.run(lambda conn: int(conn.execute(BACKEND).fetchone()["pid"]))


def test_a_read_only_server_is_unavailable_and_the_connection_is_closed(database_url: str, conn: Connection) -> None:
    """A new connection can reach the new primary; the old one never will."""
    with read_only(conn), contextlib.closing(Database(database_url)) as database:
        before = backend(database)

        with pytest.raises(DatabaseUnavailable, match="read-only"):
            database.run(lambda c: c.execute(INSERT))

        conn.execute(f"ALTER DATABASE {conn.info.dbname} RESET default_transaction_read_only")
        database.run(lambda c: c.execute(INSERT))
        assert backend(database) != before


def idle_too_long(conn: Connection, eyes: Connection) -> None:
    """Stay idle in a transaction until the server has ended it."""
    pid = conn.execute(BACKEND).fetchone()["pid"]
    conn.execute("SET LOCAL idle_in_transaction_session_timeout = 1")
    wait_until(lambda: not eyes.execute("SELECT 1 AS n FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone())
    conn.execute(INSERT)


def terminated(conn: Connection, eyes: Connection) -> None:
    """Be ended by an administrator or a shutdown."""
    eyes.execute("SELECT pg_terminate_backend(%s)", (conn.execute(BACKEND).fetchone()["pid"],))
    conn.execute(INSERT)


def too_long(conn: Connection, _eyes: Connection) -> None:
    """Run into the time limit of a statement."""
    conn.execute("SET LOCAL statement_timeout = 1")
    conn.execute("SELECT pg_sleep(60)")


def temporary_files(conn: Connection, _eyes: Connection) -> None:
    """Need more space for a sort than the server grants."""
    conn.execute("SET LOCAL temp_file_limit = '1MB'; SET LOCAL work_mem = '64kB'")
    conn.execute("SELECT n FROM generate_series(1, 500000) n ORDER BY md5(n::text)")


REFUSALS = {"25P03": idle_too_long, "57P01": terminated, "57014": too_long, "53400": temporary_files}
ENDED = ("25P03", "57P01")  # the session, with the refusal


@pytest.mark.parametrize("sqlstate", sorted(REFUSALS))
def test_what_the_server_refuses_is_an_outage(database: Database, conn: Connection, sqlstate: str) -> None:
    """None of these is about a row: nothing is counted against it."""
    before = backend(database)

    with pytest.raises(DatabaseUnavailable) as raised:
        database.run(lambda c: REFUSALS[sqlstate](c, conn))

    cause = raised.value.__cause__
    assert isinstance(cause, psycopg.Error)
    ended = (None,) if sqlstate in ENDED else ()  # the socket may be closed before the server's last words are read
    assert cause.sqlstate in (sqlstate, *ended)
    assert backend(database) != before


def test_no_connection_left_is_an_outage(database_url: str, conn: Connection) -> None:
    """53300 comes at the connection, before any statement."""
    conn.execute("CREATE ROLE visitor LOGIN PASSWORD 'visitor' CONNECTION LIMIT 0")
    try:
        url = psycopg.conninfo.make_conninfo(database_url, user="visitor", password="visitor")
        with pytest.raises(DatabaseUnavailable, match="too many connections"):
            connect(url)
    finally:
        conn.execute("DROP ROLE visitor")


def too_large_for_an_index(conn: Connection) -> None:
    """Break a limit of the program, which no waiting changes (54000)."""
    conn.execute("CREATE TEMP TABLE t (a text PRIMARY KEY)")
    conn.execute("INSERT INTO t SELECT string_agg(md5(n::text), '') FROM generate_series(1, 2000) n")


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (too_large_for_an_index, psycopg.errors.ProgramLimitExceeded),
        (lambda c: c.execute("SELECT 1/0"), psycopg.errors.DivisionByZero),
        (lambda c: c.execute("SELECT * FROM nothing"), psycopg.errors.UndefinedTable),
    ],
)
def test_what_is_not_in_the_table_stays_ours(
    database: Database, work: Callable[[Connection], object], error: type[Exception]
) -> None:
    """A fault of moorage must be counted, or the row would be repeated for ever."""
    with pytest.raises(error):
        database.run(work)


# --- what each process does meanwhile


def test_the_api_and_the_receiver_answer_503_and_continue(database_url: str, conn: Connection) -> None:
    """A provider and an application try again at 503; after 500 they give up."""
    given = {**web_process.BEARER, "content-type": "application/json"}
    project = b'{"owner": "ada", "document": {"scenes": []}}'
    body = b'{"id": "abc", "status": "processing"}'
    with web_process.running(database_url, MOORAGE_DEV_ANSWER_SECONDS="1") as front:
        with read_only(conn):
            replies = [front.register(external_id="abc"), front.ask("PUT", "/v1/projects/p", project, given)]
            webhook = front.post(body, webhook_id="msg_1")
            read = front.get("/v1/jobs")
        # A connection that only read stays read-only until its first write closes it: the application repeats that.
        wait_until(lambda: front.register(external_id="abc").status in (200, 201))
        wait_until(lambda: front.post(body, webhook_id="msg_1")[0] in (200, 202))
        with contextlib.closing(connect(database_url)) as holder:
            holder.execute("BEGIN")
            (job,) = holder.execute("SELECT id FROM jobs FOR UPDATE").fetchall()
            locked = front.ask("POST", f"/v1/jobs/{job['id']}/cancel", b"", given)
        log = front.log()

    assert [(reply.status, reply.headers.get("retry-after")) for reply in replies] == [(503, "1")] * 2
    assert (webhook[0], webhook[1]["retry-after"]) == (503, "1")
    assert read.status == 200
    assert (locked.status, locked.headers.get("retry-after")) == (503, "1")
    assert "locked" in locked.fields["detail"]
    assert "Traceback" not in log


SWEEPS = """
from moorage import logs
from worker import sweep_runner
logs.configure_logging()
for name in ("dispatch", "reconcile", "discard", "drain", "counts", "retention", "usage", "orphans"):
    sweep_runner.run_sweep(name, "node/1")
"""


def test_a_sweep_logs_one_line(stack: Stack, database_url: str, conn: Connection) -> None:
    """A traceback each second fills the disk of the one who has to find the cause."""
    with read_only(conn):
        done = fork_server.run(["-c", SWEEPS], env=cli.environment(stack, database_url), cwd=cli.ROOT)

    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.split()[2] for line in lines] == ["sweep.database_unavailable"] * 8
    assert "25006" in lines[0]


NO_FILES = """
import os, resource
import worker.sweep_runner
lowest = os.dup(0)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


def test_a_sweep_without_file_descriptors_logs_one_line(stack: Stack, database_url: str) -> None:
    """An OSError of this machine was a traceback at each tick; the next tick repeats the sweep."""
    done = fork_server.run(["-c", NO_FILES + SWEEPS], env=cli.environment(stack, database_url), cwd=cli.ROOT)

    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stderr.splitlines()] == ["sweep.database_unavailable"] * 8
    assert done.stderr.count("Too many open files") == 8


def test_a_finished_download_is_recorded_after_a_failover(stack: Stack, database_url: str) -> None:
    """The server became read-only in the middle of a step: its child waits and writes to the new primary."""
    with world(stack, database_url) as at, contextlib.ExitStack() as refusing:
        job_id = at.keeping([at.source.picture()]).job_id
        (output_id,) = at.outputs(job_id)

        def fail_over(_path: str) -> None:
            refusing.enter_context(read_only(at.conn))
            at.deps.database.close()
            threading.Timer(2.0, refusing.close).start()

        at.source.before_file = fail_over
        at.step("keep", output_id)

        row = at.row("outputs", output_id)
        assert (row["state"], row["attempt"], row["crashes"]) == ("kept", 1, 0)


def test_a_full_disk_of_postgresql_is_an_outage(
    stack: Stack, database_url: str, conn: Connection, database: Database
) -> None:
    """53100, on a real file system of one megabyte that holds a table."""
    with small_disk() as folder:
        conn.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        try:
            conn.execute("CREATE TABLE filler (a text) TABLESPACE small")
            fill = "INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, 2000) n"
            with pytest.raises(DatabaseUnavailable, match=r"refused \(53100\)"):
                database.run(lambda c: c.execute(fill))
        finally:
            conn.execute("DROP TABLE IF EXISTS filler")
            conn.execute("DROP TABLESPACE small")


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a tmpfs that the user of PostgreSQL owns; skip where that is not allowed."""
    user = unprivileged.find_user()
    options = f"size=1m,mode=700,uid={user.uid},gid={user.gid}" if user else ""
    place = Path(tempfile.mkdtemp(prefix="moorage-disk-"))  # the folders of pytest are closed to other users
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
    if done.returncode:
        place.rmdir()
        pytest.skip("no tmpfs can be mounted")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()
