"""
Databases that tests use one after the other: emptied between two tests, not made anew.

To copy the template costs a tenth of a second of processor time, to empty a copy a twentieth of that. A copy that a
test left in use, made large or changed in more than its rows is not used again.
"""

import contextlib
import itertools
import time
from typing import Any

import psycopg

from db.connection import Connection, Database, connect
from embedded.stack import Stack

SESSION_NAME = "tests"
_MAX_BYTES = 30_000_000
# What differs where the schema or a row of the template was changed.
_STATE = """
SELECT pg_database_size(current_database()) > %(max_bytes)s AS is_large,
       (SELECT array_agg((c.oid, c.xmin::text) ORDER BY c.oid)::text FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace) AS relations,
       (SELECT max(xmin::text::bigint) FROM pg_attribute) AS attributes,
       (SELECT max(xmin::text::bigint) FROM pg_proc) AS functions,
       (SELECT max(xmin::text::bigint) FROM pg_constraint) AS constraints,
       (SELECT max(xmin::text::bigint) FROM pg_trigger) AS triggers,
       (SELECT array_agg(m ORDER BY version)::text FROM schema_migrations m) AS migrations
"""
_SESSIONS = """
SELECT count(*) AS n FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
   AND pid <> ALL(%(idle)s)
"""
_SESSION_END_SECONDS = 0.5  # a closed connection's server process takes a moment to end
_TABLES = """
SELECT quote_ident(relname) AS name FROM pg_class
 WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'schema_migrations'
"""


def cheapen_logins(conn: Connection) -> None:
    """Have the password hashed once instead of 4096 times at each login: a third of the cost of a connection."""
    conn.execute("SET scram_iterations = 1")
    conn.execute(f"ALTER ROLE moorage PASSWORD '{conn.info.password}'")


class Sessions:
    """
    Sessions that no test uses now: a new one reads the descriptions of all tables and compiles the functions.

    That takes 20 ms of processor time. Of each database the idle ones are used by the next test.
    """

    def __init__(self) -> None:
        self._databases: dict[str, list[Database]] = {}
        self._conns: dict[str, list[Connection]] = {}

    def take_database(self, url: str) -> Database:
        """Return what a worker process has."""
        idle = self._databases.get(url)
        return idle.pop() if idle else Database(url)

    def take_conn(self, url: str) -> Connection:
        """Return a connection in autocommit mode."""
        idle = self._conns.get(url)
        return idle.pop() if idle else connect(url)

    def give_back(self, url: str, *given: Database | Connection) -> None:
        """Keep sessions for the next test, or close those that a test broke."""
        for one in given:
            if isinstance(one, Database):
                if one._connection is None or not _forgets(one._connection):
                    one.close()
                self._databases.setdefault(url, []).append(one)
            elif _forgets(one):
                self._conns.setdefault(url, []).append(one)
            else:
                one.close()

    def pids(self, url: str) -> list[int]:
        """Return the server's process ids of a database's idle sessions."""
        opened = [database._connection for database in self._databases.get(url, [])]
        conns = [*self._conns.get(url, []), *filter(None, opened)]
        return [conn.info.backend_pid for conn in conns if not conn.closed]

    def close(self, *urls: str) -> None:
        """Close the idle sessions of databases."""
        for url in urls:
            for one in (*self._databases.pop(url, []), *self._conns.pop(url, [])):
                one.close()


def _forgets(conn: Connection) -> bool:
    """Undo what a test did to a session, and return whether it can be used again."""
    if conn.closed or conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        return False
    with contextlib.suppress(psycopg.OperationalError):
        # A session that began while the clock was shifted has the shift for its default.
        conn.execute("RESET ALL; SET moorage.clock_shift = ''; SELECT pg_advisory_unlock_all(); UNLISTEN *")
        return True
    return False


class Databases:
    """The copies of one template on one server."""

    def __init__(self, stack: Stack, template: str) -> None:
        self._postgres, self._template = stack.postgres, template
        self.sessions = Sessions()
        self._numbers = itertools.count(1)
        self._free: list[str] = []
        self._states: dict[str, dict[str, Any]] = {}
        self._conns: dict[str, Connection] = {}  # kept: a new session reads the descriptions of all tables again

    def take(self) -> str:
        """Return the URL of an empty, migrated database."""
        if self._free:
            return self._free.pop()
        url = self._postgres.create_database(f"moorage_test_{next(self._numbers)}", template=self._template)
        self._conns[url] = connect(url, name=SESSION_NAME)
        self._states[url] = _read_state(self._conns[url])
        return url

    def give_back(self, url: str) -> None:
        """Empty a database for the next test."""
        conn = self._conns[url]
        with contextlib.suppress(psycopg.OperationalError):  # a test ended the server or all sessions
            if _has_no_other_session(conn, self.sessions.pids(url)) and _read_state(conn) == self._states[url]:
                _empty(conn)
                self._free.append(url)
                return
        self._conns.pop(url).close()
        self.sessions.close(url)

    def close(self) -> None:
        """Close what is connected to the databases."""
        self.sessions.close(*self._conns)
        for conn in self._conns.values():
            conn.close()


def _has_no_other_session(conn: Connection, idle: list[int]) -> bool:
    until = time.monotonic() + _SESSION_END_SECONDS
    while conn.execute(_SESSIONS, {"idle": idle}).fetchall() != [{"n": 0}]:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _read_state(conn: Connection) -> dict[str, Any]:
    (row,) = conn.execute(_STATE, {"max_bytes": _MAX_BYTES}).fetchall()
    return row


def _empty(conn: Connection) -> None:
    """Delete all rows, in any order, and have numbers start at 1 again."""
    tables = [row["name"] for row in conn.execute(_TABLES)]
    deletions = "; ".join(f"DELETE FROM {table}" for table in tables)
    conn.execute(
        "SET session_replication_role = replica; "
        f"{deletions}; "
        "SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence; "
        f"ALTER DATABASE {conn.info.dbname} RESET ALL"  # a shifted clock
    )
