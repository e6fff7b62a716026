"""Transactions of a process: what is sent together, and what a lost connection or an error leaves."""

import psycopg
import pytest

from bench.round_trips import RoundTripCounter
from db.connection import CommitUncertain, Connection, Database

ADD = "INSERT INTO pauses (target, reason, paused_by) VALUES (%(target)s, 'test 100%%', 'test') RETURNING target"


def targets(conn: Connection) -> list[str]:
    return [row["target"] for row in conn.execute("SELECT target FROM pauses ORDER BY 1").fetchall()]


def kill(conn: Connection, database: Database) -> None:
    pid = database.connection().info.backend_pid
    conn.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))


def test_queued_statements_share_a_round_trip(database: Database, conn: Connection) -> None:
    """BEGIN and COMMIT included."""
    counter = RoundTripCounter()

    def add(own: Connection) -> str:
        first = own.queue(ADD, {"target": "a"})
        row = own.execute(ADD, {"target": "b"}).fetchone()
        own.queue("DELETE FROM ticks")
        assert row is not None
        return f"{first.rows[0]['target']}{row['target']}"

    with counter.count("transaction", database.connection().pgconn):
        found = database.run(add)
    with counter.count("statement", database.connection().pgconn):
        rows = database.fetch_all(ADD, {"target": "c"})
    with counter.count("nothing", database.connection().pgconn):
        database.run(lambda _conn: None)

    assert (found, rows) == ("ab", [{"target": "c"}])
    assert counter.round_trips == {"transaction": 2, "statement": 1, "nothing": 0}
    assert targets(conn) == ["a", "b", "c"]


def test_outside_a_transaction_a_queued_statement_is_executed_at_once(conn: Connection) -> None:
    """Commands and tests use connections of their own."""
    assert conn.queue(ADD, {"target": "a"}).rows == [{"target": "a"}]
    assert targets(conn) == ["a"]


def test_an_error_in_a_queued_statement_undoes_all(database: Database, conn: Connection) -> None:
    """It comes with COMMIT, which is then not executed: the outcome is certain."""

    def add(own: Connection) -> None:
        own.execute(ADD, {"target": "a"})
        own.queue(ADD, {"target": "a"})

    for _ in range(2):  # the connection stays usable
        with pytest.raises(psycopg.errors.UniqueViolation):
            database.run(add)
    assert targets(conn) == []


def test_a_savepoint_takes_what_is_queued_in_it(database: Database, conn: Connection) -> None:
    """Before it, inside it, and after a rollback to it."""

    def add(own: Connection) -> None:
        own.queue(ADD, {"target": "a"})
        with own.transaction() as savepoint:
            own.queue(ADD, {"target": "b"})
            raise psycopg.Rollback(savepoint)
        with own.transaction():
            own.queue(ADD, {"target": "c"})
        with pytest.raises(psycopg.errors.UniqueViolation), own.transaction():
            own.queue(ADD, {"target": "a"})

    database.run(add)

    assert targets(conn) == ["a", "c"]


def test_a_connection_that_ended_while_idle_is_replaced(database: Database, conn: Connection) -> None:
    """A restart of PostgreSQL, or of PgBouncer, must not cost a step."""
    database.run(lambda own: own.queue(ADD, {"target": "a"}))
    kill(conn, database)
    database.run(lambda own: own.queue(ADD, {"target": "b"}))

    assert targets(conn) == ["a", "b"]


def test_a_connection_that_ends_with_commit_is_uncertain(database: Database, conn: Connection) -> None:
    """Only the row can say whether it was executed."""

    def add(own: Connection) -> None:
        own.execute(ADD, {"target": "a"})
        kill(conn, database)

    with pytest.raises(CommitUncertain):
        database.run(add)
    assert targets(conn) == []
