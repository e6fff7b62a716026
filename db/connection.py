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

from db import lock_holders, sqlstates
from moorage import time_limit
from moorage.errors import DatabaseLocked, DatabaseUnavailable

T = TypeVar("T")
Row = dict[str, Any]
Connection = psycopg.Connection[Row]

# A signal handler that raises during COMMIT would leave the outcome unknown (celery.md, finding 8).
BLOCKED_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
RETRYABLE_ERRORS: Final = (pg.DeadlockDetected, pg.SerializationFailure)

# One round trip; SET LOCAL, because a session setting does not survive PgBouncer in transaction mode.
BEGIN: Final = (
    "BEGIN; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = {lock_ms};"
    " SET LOCAL idle_in_transaction_session_timeout = '20s'"
)
LOCK_MS: Final = 2000  # how long a statement waits for a lock; must be below the statement's own limit
OBSERVED_LOCK_MS: Final = 300  # in the second attempt, which only finds out who holds the lock


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
        raise DatabaseUnavailable(f"PostgreSQL connection failed: {sqlstates.first_line(error)}") from error


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
    def transaction(self, lock_ms: int = LOCK_MS) -> Iterator[Connection]:
        """
        Run a transaction with signals blocked.

        Raises:
            DatabaseUnavailable: before COMMIT. The connection is closed: a new one may reach another server.
            CommitUncertain: in COMMIT.
            DatabaseLocked: a statement waited for a lock for `lock_ms`.
        """
        with block_signals(), time_limit.suspend_limit():
            conn = self._begin(lock_ms)
            try:
                yield conn
            except BaseException as error:
                translated = sqlstates.translate(error)
                if isinstance(translated, DatabaseUnavailable):
                    self.close()
                else:
                    self._roll_back(conn)
                if translated is not None:
                    raise translated from error
                raise
            self._commit(conn)

    def _begin(self, lock_ms: int) -> Connection:
        """Begin a transaction; reconnect once if the idle connection was closed (a restart of PostgreSQL)."""
        reused = self._connection is not None
        try:
            conn = self.connection()
            conn.execute(BEGIN.format(lock_ms=lock_ms))
        except psycopg.Error as error:
            self.close()
            if reused:
                return self._begin(lock_ms)
            raise DatabaseUnavailable(f"PostgreSQL connection lost: {sqlstates.first_line(error)}") from error
        return conn

    def _commit(self, conn: Connection) -> None:
        try:
            conn.execute("COMMIT")
        except RETRYABLE_ERRORS:
            self._roll_back(conn)
            raise
        except psycopg.Error as error:
            if sqlstates.translate(error) is None:  # a deferred constraint: certainly not committed
                self._roll_back(conn)
                raise
            self.close()
            raise CommitUncertain(f"PostgreSQL failed during COMMIT: {sqlstates.first_line(error)}") from error

    def _roll_back(self, conn: Connection) -> None:
        try:
            conn.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def run(self, work: Callable[[Connection], T], *, lock_ms: int = LOCK_MS) -> T:
        """
        Run `work` in a transaction and return its result; repeat it up to 20 times after a deadlock.

        Raises as `transaction` does. After a wait for a lock `work` is run once more, to name the lock's holder.
        """
        for _ in range(20):
            try:
                with self.transaction(lock_ms) as conn:
                    return work(conn)
            except RETRYABLE_ERRORS:
                continue
            except DatabaseLocked as error:
                locked = error
                break
        else:
            raise DatabaseUnavailable("transaction failed 20 times by deadlock or serialization failure")
        return self._run_observed(work, locked)

    def _run_observed(self, work: Callable[[Connection], T], locked: DatabaseLocked) -> T:
        """Run `work` while another connection looks who blocks this one. Raises DatabaseLocked, with the holder."""
        try:
            eyes = connect(self._url, name=f"{self._name}-locks")
        except DatabaseUnavailable as error:
            raise locked from error
        with contextlib.closing(eyes), lock_holders.HolderReader(eyes) as reader:
            try:
                with self.transaction(OBSERVED_LOCK_MS) as conn:
                    reader.watch(conn)
                    return work(conn)
            except (DatabaseLocked, *RETRYABLE_ERRORS) as error:
                raise reader.explain(locked) from error


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
