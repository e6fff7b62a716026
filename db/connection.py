"""One connection of a process, short transactions on it, and what an error in them means."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row

from moorage.errors import DatabaseUnavailable

T = TypeVar("T")
Row = dict[str, Any]
Connection = psycopg.Connection[Row]

# A signal handler that raises inside a COMMIT would leave its outcome unknown (celery.md, finding 8).
BLOCKED_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
RETRYABLE_ERRORS: Final = (pg.DeadlockDetected, pg.SerializationFailure)

# One round trip; SET LOCAL, because a session setting does not survive PgBouncer in transaction mode.
BEGIN: Final = (
    "BEGIN; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '10s';"
    " SET LOCAL idle_in_transaction_session_timeout = '20s'"
)


class CommitUncertain(DatabaseUnavailable):
    """The connection broke in COMMIT: only the row can say whether it happened."""


def connect(url: str, *, name: str = "moorage") -> Connection:
    """
    Open a connection in autocommit mode, with rows as dicts.

    Raises:
        DatabaseUnavailable: no connection within 3 s.
    """
    try:
        return psycopg.connect(
            url,
            autocommit=True,
            row_factory=dict_row,
            prepare_threshold=None,  # PgBouncer in transaction mode
            application_name=name,
            connect_timeout=3,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=15_000,
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {_first_line(error)}") from error


class Database:
    """The process's connection: made when first needed, made anew after a fork or an error. One thread uses it."""

    def __init__(self, url: str, *, name: str = "moorage") -> None:
        self._url = url
        self._name = name
        self._connection: Connection | None = None
        self._pid = 0

    def connection(self) -> Connection:
        """Return an open connection."""
        if self._connection is not None and self._pid != os.getpid():
            self._connection = None  # the parent's: closing it here would close it there
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url, name=self._name)
            self._pid = os.getpid()
        return self._connection

    def close(self) -> None:
        """Close the connection, if there is one of this process."""
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """
        Run a short transaction, with signals held back until it has ended.

        Raises:
            DatabaseUnavailable: the connection failed before COMMIT: nothing happened.
            CommitUncertain: it failed in COMMIT.
        """
        with block_signals():
            conn = self._begin()
            try:
                yield conn
            except BaseException as error:
                self._roll_back(conn)
                if isinstance(error, psycopg.OperationalError) and not isinstance(error, RETRYABLE_ERRORS):
                    raise DatabaseUnavailable(f"PostgreSQL went away: {_first_line(error)}") from error
                raise
            self._commit(conn)

    def _begin(self) -> Connection:
        """Begin, on a new connection where the old one died while nobody used it (a restart of PostgreSQL)."""
        reused = self._connection is not None
        try:
            conn = self.connection()
            conn.execute(BEGIN)
        except psycopg.OperationalError as error:
            self.close()
            if reused:
                return self._begin()
            raise DatabaseUnavailable(f"PostgreSQL went away: {_first_line(error)}") from error
        return conn

    def _commit(self, conn: Connection) -> None:
        try:
            conn.execute("COMMIT")
        except RETRYABLE_ERRORS:
            self._roll_back(conn)
            raise
        except psycopg.OperationalError as error:
            self.close()
            raise CommitUncertain(f"PostgreSQL went away in COMMIT: {_first_line(error)}") from error

    def _roll_back(self, conn: Connection) -> None:
        try:
            conn.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction, again after a deadlock or a serialization failure (40P01, 40001)."""
        for _ in range(20):
            try:
                with self.transaction() as conn:
                    return work(conn)
            except RETRYABLE_ERRORS:
                continue
        raise DatabaseUnavailable("20 deadlocks in a row")


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Hold back the signals that would raise in the middle; they are delivered at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fetch_one(conn: Connection, sql: str, args: dict[str, Any]) -> Row | None:
    """Execute a statement and return its only row, or None."""
    return conn.execute(sql, args).fetchone()


def fetch_all(conn: Connection, sql: str, args: dict[str, Any] | None = None) -> list[Row]:
    """Execute a statement and return its rows."""
    return conn.execute(sql, args).fetchall()


NOW = "SELECT moment() AS now"


def current_time(conn: Connection) -> datetime:
    """Return the database's time: the only clock that decisions use."""
    row = conn.execute(NOW).fetchone()
    return cast(datetime, row["now"] if row else None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
