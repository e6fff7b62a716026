"""The database connection of a process, short transactions on it, and the errors they raise."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row

from moorage.errors import DatabaseUnavailable

T = TypeVar("T")
Row = dict[str, Any]
Connection = psycopg.Connection[Row]

# A signal handler that raises during COMMIT would leave the outcome unknown (celery.md, finding 8).
BLOCKED_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
RETRYABLE_ERRORS: Final = (pg.DeadlockDetected, pg.SerializationFailure)

# One round trip; SET LOCAL, because a session setting does not survive PgBouncer in transaction mode.
BEGIN: Final = (
    "BEGIN; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '10s';"
    " SET LOCAL idle_in_transaction_session_timeout = '20s'"
)


class CommitUncertain(DatabaseUnavailable):
    """The connection failed during COMMIT: read the row to determine the outcome."""


def connect(url: str, *, name: str = "moorage") -> Connection:
    """Open a connection in autocommit mode. Raises DatabaseUnavailable if there is none within 3 s."""
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
    except (psycopg.OperationalError, OSError) as error:  # OSError: no file descriptor is free
        raise DatabaseUnavailable(f"PostgreSQL connection failed: {_first_line(error)}") from error


class Database:
    """A lazily opened connection, reopened after a fork or an error. Not thread-safe."""

    def __init__(self, url: str, *, name: str = "moorage") -> None:
        self._url = url
        self._name = name
        self._connection: Connection | None = None
        self._pid = 0

    def connection(self) -> Connection:
        if self._connection is not None and self._pid != os.getpid():
            self._connection = None  # belongs to the parent process: closing it here would close it there
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url, name=self._name)
            self._pid = os.getpid()
        return self._connection

    def close(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run a transaction with signals blocked. Raises DatabaseUnavailable before COMMIT, else CommitUncertain."""
        with block_signals():
            conn = self._begin()
            try:
                yield conn
            except BaseException as error:
                self._roll_back(conn)
                if isinstance(error, psycopg.OperationalError) and not isinstance(error, RETRYABLE_ERRORS):
                    raise DatabaseUnavailable(f"PostgreSQL connection lost: {_first_line(error)}") from error
                raise
            self._commit(conn)

    def _begin(self) -> Connection:
        """Begin a transaction; reconnect once if the idle connection was closed (a restart of PostgreSQL)."""
        reused = self._connection is not None
        try:
            conn = self.connection()
            conn.execute(BEGIN)
        except psycopg.OperationalError as error:
            self.close()
            if reused:
                return self._begin()
            raise DatabaseUnavailable(f"PostgreSQL connection lost: {_first_line(error)}") from error
        return conn

    def _commit(self, conn: Connection) -> None:
        try:
            conn.execute("COMMIT")
        except RETRYABLE_ERRORS:
            self._roll_back(conn)
            raise
        except psycopg.OperationalError as error:
            self.close()
            raise CommitUncertain(f"PostgreSQL connection lost during COMMIT: {_first_line(error)}") from error

    def _roll_back(self, conn: Connection) -> None:
        try:
            conn.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; repeat it up to 20 times after a deadlock or serialization failure."""
        for _ in range(20):
            try:
                with self.transaction() as conn:
                    return work(conn)
            except RETRYABLE_ERRORS:
                continue
        raise DatabaseUnavailable("transaction failed 20 times by deadlock or serialization failure")


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Block the signals whose handlers raise; they are delivered when the context exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fetch_one(conn: Connection, sql: str, args: Mapping[str, Any]) -> Row | None:
    return conn.execute(sql, args).fetchone()


def fetch_all(conn: Connection, sql: str, args: Mapping[str, Any] | None = None) -> list[Row]:
    return conn.execute(sql, args).fetchall()


NOW = "SELECT moment() AS now"


def current_time(conn: Connection) -> datetime:
    """Return the database's time, the only clock that decisions use."""
    row = conn.execute(NOW).fetchone()
    return cast(datetime, row["now"] if row else None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
