"""What a claim or a tick reads does not grow with the rows that are due: plans and rows, no times."""

from collections.abc import Iterator

import pytest

from bench import backlog, growth
from db.connection import Connection, connect, fetch_all
from embedded.stack import Stack
from moorage.model import Step

DUE = 20_000


def claims(step: Step) -> growth.Read:
    """Return a read that claims a row for a step."""
    return lambda conn: backlog.CLAIMS[step](conn, backlog.find_last(conn, step))


READS = {**{f"claim of {step}": claims(step) for step in backlog.CLAIMS}, **backlog.SEARCHES}


@pytest.fixture(scope="module")
def filled(stack: Stack, template_database: str) -> Iterator[Connection]:
    with connect(stack.postgres.create_database("backlog", template=template_database)) as made:
        backlog.fill(made, DUE)
        yield made


@pytest.fixture
def conn(filled: Connection) -> Iterator[Connection]:
    with filled.transaction(force_rollback=True):
        yield filled


@pytest.mark.parametrize("read", READS)
def test_a_search_does_not_grow_with_the_backlog(conn: Connection, read: str) -> None:
    """A claim of 100 deliveries read all 100,000 that waited; a search for polls all planned predictions."""
    assert growth.explain(conn, READS[read]).rows <= 1500


def test_no_output_is_read_while_keep_is_paused(conn: Connection) -> None:
    """Operators pause it in an outage, in which a backlog grows: each tick looked at all of it."""
    conn.execute("INSERT INTO pauses (target, paused_by) VALUES ('keep', 'ann')")

    assert growth.explain(conn, backlog.SEARCHES["due outputs"]).rows <= 10


def test_everything_is_due(conn: Connection) -> None:
    """The searches above would find nothing in an empty database."""
    found = [len(fetch_all(conn, f"SELECT 1 FROM {table} WHERE run_at <= moment()")) for table in backlog.TABLES]

    assert found == [DUE, DUE, 2 * DUE, DUE]
    for step in ("ingest", "submit", "notify"):
        assert list(backlog.CLAIMS[step](conn, backlog.find_last(conn, step))) != []
