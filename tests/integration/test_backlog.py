"""What a claim or a tick reads does not grow with the rows that are due: plans and rows, no times."""

from collections.abc import Iterator

import pytest

from bench import backlog, growth
from db.connection import Connection, connect, fetch_all
from db.reports import metrics
from embedded.stack import Stack
from moorage.model import Step

DUE = 20_000


def claims(step: Step) -> growth.Read:
    """Return a read that claims a row for a step."""
    return lambda conn: backlog.CLAIMS[step](conn, backlog.find_last(conn, step))


# All files of the backlog have been due for ten minutes; two others for less: one is at another host, one has expired.
FAILING_HOST = """
SET LOCAL moorage.clock_shift = '10 min';
INSERT INTO breakers (target, probe_at, reason)
VALUES ('host replicate.delivery', moment() - interval '{} s', '503');
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, state, run_at, expires_at)
SELECT gen_random_uuid(), job_id, prediction_id, 1000 + n, 'extra ' || n, 'url', 'https://' || host || '/a.png',
       'waiting', moment() - minutes * interval '1 min', expires_at - hours * interval '1 h'
  FROM (SELECT * FROM outputs LIMIT 1) o,
       (VALUES (1, 'b.example', 4, 0), (2, 'replicate.delivery', {}, 3)) v (n, host, minutes, hours)
"""
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


@pytest.mark.parametrize(
    ("probe_seconds", "expired_minutes", "minutes"),
    [(1, 2, 4), (1, 6, 6), (120, 2, 10)],
    ids=["host", "expired", "all"],
)
def test_the_oldest_due_row_is_found_beside_a_backlog_of_a_failing_host(
    conn: Connection, probe_seconds: int, expired_minutes: int, minutes: int
) -> None:
    """Its gauge read each file of the host: with 100,000 longer than a statement may take, and its alert was silent."""
    conn.execute(FAILING_HOST.format(probe_seconds, expired_minutes).encode())

    cost = growth.explain(conn, lambda conn: conn.execute(metrics.OLDEST_DUE_BY_TABLE["outputs"]))
    (found,) = fetch_all(conn, metrics.OLDEST_DUE_BY_TABLE["outputs"])

    assert float(found["value"]) == pytest.approx(60 * minutes, abs=50)
    assert cost.rows <= 30


@pytest.mark.parametrize("sql", [metrics.KEEP_STALLED, metrics.STORAGE_FAILING], ids=["stalled", "storage"])
def test_the_last_kept_file_is_found_among_many_events(conn: Connection, sql: str) -> None:
    """While none is kept, its gauges read the events of an hour, and were missing when their alerts should fire."""
    conn.execute(
        "INSERT INTO events (subject, subject_id, to_state, actor)"
        " SELECT 'output', gen_random_uuid(), 'waiting', 'a/1' FROM generate_series(1, 20000)"
    )
    conn.execute("DELETE FROM outputs WHERE id <> (SELECT id FROM outputs LIMIT 1)")

    assert growth.explain(conn, lambda conn: conn.execute(sql)).rows <= 10


def test_everything_is_due(conn: Connection) -> None:
    """The searches above would find nothing in an empty database."""
    found = [len(fetch_all(conn, f"SELECT 1 FROM {table} WHERE run_at <= moment()")) for table in backlog.TABLES]

    assert found == [DUE, DUE, 2 * DUE, DUE]
    for step in ("ingest", "submit", "notify"):
        assert list(backlog.CLAIMS[step](conn, backlog.find_last(conn, step))) != []
