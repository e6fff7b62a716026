"""Transactions of a process: what is sent together, and what a lost connection or an error leaves."""

import psycopg
import pytest

from bench.round_trips import RoundTripCounter
from db.connection import CommitUncertain, Connection, Database
from moorage.errors import DatabaseUnavailable

ADD = "INSERT INTO pauses (target, reason, paused_by) VALUES (%(target)s, 'test 100%%', 'test') RETURNING target"

PLANNED_ADD = f"{ADD} /* planned */\n"
PREPARED = "SELECT sum(generic_plans) AS uses, count(*) FROM pg_prepared_statements"


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


def test_a_planned_statement_is_prepared_once_by_a_connection(database: Database, conn: Connection) -> None:
    """And planned once, from its second transaction on: the first one finds whether the session is its own."""
    counter = RoundTripCounter()

    def add(own: Connection) -> str:
        own.queue(PLANNED_ADD, {"target": "b"})
        own.queue(PLANNED_ADD, {"target": "c"})
        row = own.execute(PLANNED_ADD, {"target": "d"}).fetchone()
        last = own.execute(PLANNED_ADD, {"target": "e"}).fetchone()
        return str(row and row["target"]) + str(last and last["target"])

    database.close()  # other tests have used its session
    database.fetch_all(PLANNED_ADD, {"target": "a"})
    with counter.count("planned", database.connection().pgconn):
        added = database.run(add)
    database.fetch_all(PLANNED_ADD, {"target": "f"})

    assert (added, counter.round_trips["planned"]) == ("de", 3)
    assert targets(conn) == list("abcdef")
    (row,) = database.fetch_all(PREPARED, {})
    assert (row["count"], row["uses"]) == (1, 5)


def test_only_calls_of_planned_statements_use_general_plans(database: Database) -> None:
    """A list with absent filters read whole tables, as the second statement of a transaction."""

    def call(own: Connection) -> list[str]:
        own.execute(PLANNED_ADD, {"target": "a"})
        first = own.execute("SHOW plan_cache_mode").fetchone()
        own.queue(PLANNED_ADD, {"target": "b"})
        return [str(row and row["plan_cache_mode"]) for row in (first, own.execute("SHOW plan_cache_mode").fetchone())]

    database.close()
    database.fetch_all("SELECT 1", {})

    assert database.run(call) == ["auto", "auto"]
    assert database.fetch_all(PREPARED, {})[0]["uses"] == 2


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_planned_statement_outlives_the_transaction_that_prepared_it(
    database: Database, conn: Connection, is_sent: bool
) -> None:
    """The transaction failed, before or after its statements were sent; or a savepoint dropped them."""

    def fail(own: Connection) -> None:
        own.queue(PLANNED_ADD, {"target": "a"})
        if is_sent:
            own.execute("SELECT 1 / 0")
        raise ZeroDivisionError

    def drop(own: Connection) -> None:
        with own.transaction() as savepoint:
            own.queue(PLANNED_ADD, {"target": "b"})
            raise psycopg.Rollback(savepoint)

    database.fetch_all("SELECT 1", {})
    with pytest.raises(psycopg.errors.DivisionByZero if is_sent else ZeroDivisionError):
        database.run(fail)
    database.run(drop)
    database.fetch_all(PLANNED_ADD, {"target": "c"})

    assert targets(conn) == ["c"]


def test_a_session_that_lost_its_plans_costs_one_attempt(
    database: Database, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler that does not keep sessions, and passes on the server's process id, gives each transaction another."""
    monkeypatch.setattr(Connection, "keeps_plans", True)
    for target in "ab":
        database.fetch_all(PLANNED_ADD, {"target": target})
    database.fetch_all("DEALLOCATE ALL", {})

    with pytest.raises(DatabaseUnavailable, match="26000"):
        database.fetch_all(PLANNED_ADD, {"target": "c"})
    for target in "cd":
        database.fetch_all(PLANNED_ADD, {"target": target})

    assert targets(conn) == list("abcd")
    assert database.fetch_all(PREPARED, {})[0]["count"] == 0


def test_a_statement_is_prepared_again_after_a_change_of_its_result(database: Database, conn: Connection) -> None:
    """A migration beside a worker, which has nothing to do with the row that the worker processes."""
    read = "SELECT * FROM changed /* planned */\n"
    conn.execute("CREATE TABLE changed (a int)")
    for _ in range(2):
        database.fetch_all(read, {})
    conn.execute("ALTER TABLE changed ADD COLUMN b int")

    with pytest.raises(DatabaseUnavailable, match="0A000"):
        database.fetch_all(read, {})
    assert database.fetch_all(read, {}) == []
    conn.execute("DROP TABLE changed")
