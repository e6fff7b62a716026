"""The database connection of a process, short transactions on it, and the errors they raise."""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row

from db import lock_holders, prepared, sqlstates
from moorage import time_limit
from moorage.errors import DatabaseLocked, DatabaseUnavailable
from moorage.failpoints import failpoint

T = TypeVar("T")
Row = dict[str, Any]

# A signal handler that raises during COMMIT would leave the outcome unknown (celery.md, finding 8).
BLOCKED_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
RETRYABLE_ERRORS: Final = (pg.DeadlockDetected, pg.SerializationFailure)

# SET LOCAL, because a session setting does not survive PgBouncer in transaction mode; nor does a prepared statement. So
# the first transaction asks for its process at its end: PgBouncer tells its clients another one.
BEGIN: Final = (
    "BEGIN; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = {lock_ms};"
    " SET LOCAL idle_in_transaction_session_timeout = '20s'"
)
# Ends a statement whose plan a connection keeps: planning it takes longer than executing it.
_PLANNED: Final = "/* planned */\n"
LOCK_MS: Final = 2000  # how long a statement waits for a lock; must be below the statement's own limit
OBSERVED_LOCK_MS: Final = 300  # in the second attempt, which only finds out who holds the lock


class QueuedQuery:
    """A statement that is sent together with a later one; then `rows` has its result."""

    def __init__(self, text: str, call: tuple[str, str] | None = None) -> None:
        self.text, self.call = text, call  # call: of the statement that this one prepares
        self.rows: list[Row] = []


class Connection(psycopg.Connection[Row]):
    """
    A connection that sends statements together where nothing waits for the results of the first ones.

    In a transaction of `Database`, BEGIN and what is queued are sent with the next statement, or with COMMIT, as one
    simple query. It has no parameters: values are part of its text, which PostgreSQL logs if it fails. So queue neither
    files nor secrets.
    """

    _queue: list[QueuedQuery] | None = None  # None: outside a transaction of Database
    _process: QueuedQuery | None = None
    _calls: Mapping[str, str] = {}  # of prepared statements
    after_commit: tuple[Callable[[], object], ...] = ()  # called when this transaction of Database has committed
    keeps_plans = True  # False in a process that has met a pooler which does not keep sessions

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool = False
    ) -> psycopg.Cursor[Row]:
        if not self._queue and not self._keeps_plan(query):
            return super().execute(query, params, prepare=prepare, binary=binary)
        self.queue(query, params)
        return self.send_queue()

    def fetch_all(self, sql: str, args: Mapping[str, Any]) -> list[Row]:
        return self.execute(sql, args).fetchall()

    def queue(self, sql: str, args: Mapping[str, Any] | None = None) -> QueuedQuery:
        """Execute a statement together with the next one; outside a transaction at once."""
        is_planned = self._keeps_plan(sql)
        query = QueuedQuery(psycopg.ClientCursor(self).mogrify(self._prepare(sql) if is_planned else sql, args))
        if self._queue is None:
            self._send([query])
        else:
            self._queue += [QueuedQuery(prepared.BEFORE), query, QueuedQuery(prepared.AFTER)] if is_planned else [query]
        return query

    def _keeps_plan(self, sql: Any) -> bool:
        is_planned = self.keeps_plans and self._queue is not None and isinstance(sql, str) and sql.endswith(_PLANNED)
        return is_planned and self._process is not None and self._process.rows == [{"pid": self.info.backend_pid}]

    def _prepare(self, sql: str) -> str:
        """Return the call of a prepared statement; PREPARE is sent together with the first one."""
        queued = self._queue if self._queue is not None else []
        if call := self._calls.get(sql) or dict(query.call for query in queued if query.call).get(sql):
            return call
        text, call = prepared.build_prepare(sql)
        queued.append(QueuedQuery(text, (sql, call)))
        return call

    def send_queue(self) -> psycopg.Cursor[Row]:
        """Execute what is queued; return the result of the last statement."""
        queries, self._queue = self._queue or [], []
        return self._send(queries)

    def _send(self, queries: Sequence[QueuedQuery]) -> psycopg.Cursor[Row]:
        cursor = psycopg.ClientCursor(self)
        cursor.execute(";\n".join(query.text for query in queries))
        for n in range(-len(queries), 0):  # from the end: BEGIN has several results
            queries[n].rows = result.fetchall() if (result := cursor.set_result(n)).rownumber is not None else []
        self._calls = {**self._calls, **dict(query.call for query in queries if query.call)}
        return cursor.set_result(-2 if queries and queries[-1].text == prepared.AFTER else -1)

    def begin(self, lock_ms: int) -> None:
        self._queue, self.after_commit = [], ()
        self.queue(BEGIN.format(lock_ms=lock_ms))

    def end(self, command: str) -> None:
        """Commit or roll back, unless nothing was executed."""
        queries, self._queue = [] if command == "ROLLBACK" else self._queue or [], None
        if len(queries) > 1 or self.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            process = self._process or QueuedQuery("SELECT pg_backend_pid() AS pid")
            self._send([*queries, QueuedQuery(command), *([] if self._process else [process])])
            self._process = process

    @contextlib.contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        """Run a transaction of psycopg, in one of `Database` a savepoint."""
        if self._queue:
            self.send_queue()
        with super().transaction(*args, **options) as transaction:
            try:
                yield transaction
                if self._queue:
                    self.send_queue()
            except BaseException:
                self._queue = self._queue and []
                raise


class CommitUncertain(DatabaseUnavailable):
    """The connection failed during COMMIT: read the row to determine the outcome."""


def connect(url: str, *, name: str = "moorage") -> Connection:
    """Open a connection in autocommit mode. Raises DatabaseUnavailable if there is none within 3 s."""
    try:
        return Connection.connect(
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
    except (psycopg.OperationalError, OSError) as error:
        raise DatabaseUnavailable(f"PostgreSQL connection failed: {sqlstates.explain_no_connection(error)}") from error


class Database:
    """A lazily opened connection, reopened after a fork or an error. Not thread-safe."""

    def __init__(self, url: str, *, name: str = "moorage") -> None:
        self._url, self._name, self._pid = url, name, 0
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        if self._connection is not None and self._pid != os.getpid():
            self._connection = None  # belongs to the parent process: closing it here would close it there
        if self._connection is not None and (self._connection.closed or has_unread_bytes(self._connection)):
            self.close()
        if self._connection is None:
            self._connection = connect(self._url, name=self._name)
            self._pid = os.getpid()
        return self._connection

    def close(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None

    @contextlib.contextmanager
    def transaction(self, lock_ms: int = LOCK_MS, point: str = "") -> Iterator[Connection]:
        """
        Run a transaction with signals blocked, and with failpoints before and after its COMMIT if `point` names them.

        Raises:
            DatabaseUnavailable, in COMMIT CommitUncertain. Closes the connection: a new one may reach another server.
            DatabaseLocked: a statement waited for a lock for `lock_ms`.
        """
        with block_signals(), time_limit.suspend_limit():
            conn, is_committing = self.connection(), False
            conn.begin(lock_ms)
            try:
                yield conn
                if point:
                    failpoint(f"{point}.before_commit")
                is_committing = True
                conn.end("COMMIT")
                if point:
                    failpoint(f"{point}.after_commit")
                for call in conn.after_commit:
                    call()
            except BaseException as error:
                translated = sqlstates.translate(error)
                if not isinstance(translated, DatabaseUnavailable):  # certainly not committed
                    self._roll_back(conn)
                else:
                    self.close()
                    code = getattr(error, "sqlstate", None) or "08"
                    Connection.keeps_plans &= code != "26000"
                    if is_committing and code.startswith(("08", "57P")):  # after another answer it is not committed
                        reason = sqlstates.first_line(error)
                        raise CommitUncertain(f"PostgreSQL failed during COMMIT: {reason}") from error
                if translated is not None:
                    raise translated from error
                raise

    def _roll_back(self, conn: Connection) -> None:
        try:
            conn.end("ROLLBACK")
        except psycopg.Error:
            self.close()

    def run(self, work: Callable[[Connection], T], *, lock_ms: int = LOCK_MS, point: str = "") -> T:
        """
        Run `work` in a transaction and return its result; repeat it up to 20 times after a deadlock.

        Raises as `transaction` does. After a wait for a lock `work` is run once more, to name the lock's holder.
        """
        for _ in range(20):
            try:
                with self.transaction(lock_ms, point) as conn:
                    return work(conn)
            except RETRYABLE_ERRORS:
                continue
            except DatabaseLocked as error:
                return self._rerun_to_find_lock_holder(work, error, point)
        raise DatabaseUnavailable("transaction failed 20 times by deadlock or serialization failure")

    def fetch_all(self, sql: str, args: Mapping[str, Any]) -> list[Row]:
        """Execute one statement in a transaction, in one round trip; raises as `run` does."""
        return self.run(lambda conn: conn.queue(sql, args)).rows

    def _rerun_to_find_lock_holder(self, work: Callable[[Connection], T], locked: DatabaseLocked, point: str) -> T:
        """Run `work` while another connection looks who blocks this one. Raises DatabaseLocked, with the holder."""
        try:
            observer = connect(self._url, name=f"{self._name}-locks")
        except DatabaseUnavailable as error:
            raise locked from error
        holders: list[Row] = []
        with contextlib.closing(observer), contextlib.ExitStack() as watching:
            try:
                with self.transaction(OBSERVED_LOCK_MS, point) as conn:
                    holders = watching.enter_context(lock_holders.watch(conn, observer))  # also while it commits
                    return work(conn)
            except (DatabaseLocked, *RETRYABLE_ERRORS) as error:
                raise lock_holders.explain(locked, holders) from error


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


def has_unread_bytes(conn: psycopg.Connection[Row] | psycopg.AsyncConnection[Row]) -> bool:
    """Return True if the server sent unsolicited data: nearly always the end of the connection."""
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def fetch_one(conn: Connection, sql: str, args: Mapping[str, Any]) -> Row | None:
    return conn.execute(sql, args).fetchone()


def fetch_all(conn: Connection, sql: str, args: Mapping[str, Any] | None = None) -> list[Row]:
    return conn.execute(sql, args).fetchall()


NOW = "SELECT moment() AS now"


def current_time(conn: Connection) -> datetime:
    """Return the database's time, the only clock that decisions use."""
    return cast(datetime, fetch_all(conn, NOW)[0]["now"])
