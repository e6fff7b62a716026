"""What PostgreSQL refuses: which error each SQLSTATE becomes, and what happens to the connection."""

import contextlib
from collections.abc import Callable, Iterator

import psycopg
import pytest

from db.connection import Connection, Database, connect
from moorage.errors import DatabaseUnavailable
from tests.integration.core import wait_until

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
    wait_until(lambda: not eyes.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone())
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


@pytest.mark.parametrize("sqlstate", sorted(REFUSALS))
def test_what_the_server_refuses_is_an_outage(database: Database, conn: Connection, sqlstate: str) -> None:
    """None of these is about a row: nothing is counted against it."""
    before = backend(database)

    with pytest.raises(DatabaseUnavailable) as raised:
        database.run(lambda c: REFUSALS[sqlstate](c, conn))

    cause = raised.value.__cause__
    assert isinstance(cause, psycopg.Error)
    assert cause.sqlstate == sqlstate
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
