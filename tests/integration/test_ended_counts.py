"""Counts of ended rows: the gauges tell what the rows tell, however far the sweep came and however it ended."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bench import history
from db import ended_counts
from db.connection import Connection, connect
from db.reports import metrics
from embedded.stack import Stack
from tests.integration.core import together

# No row ended at the edge of a window, so that no expectation depends on the minute.
CLEAR_EDGES = """
UPDATE outputs SET ended_at = ended_at - interval '3 h' WHERE ended_at BETWEEN moment() - interval '26 h' AND
                                                                               moment() - interval '22 h';
UPDATE jobs SET settled_at = settled_at - interval '3 h' WHERE settled_at BETWEEN moment() - interval '26 h' AND
                                                                                  moment() - interval '22 h';
UPDATE predictions SET ended_at = ended_at - interval '2 h' WHERE ended_at BETWEEN moment() - interval '90 min' AND
                                                                                   moment() - interval '45 min'
"""
EXPECTED = """
SELECT 'outputs' AS gauge, state AS label, count(*) AS value FROM outputs
 WHERE ended_at > moment() - interval '24 h' GROUP BY state
UNION ALL SELECT 'jobs', state, count(*) FROM jobs WHERE settled_at > moment() - interval '24 h' GROUP BY state
UNION ALL SELECT 'predictions', provider || ended_by, count(*) FROM predictions
 WHERE ended_at > moment() - interval '1 h' GROUP BY provider || ended_by
"""
GAUGES = {"outputs": metrics.OUTPUTS_ENDED, "jobs": metrics.JOBS_ENDED, "predictions": metrics.PREDICTIONS_ENDED}
# No expectation depends on when the test runs. At this time a turn of whole hours before `until` left a gap.
NOW = "2026-11-29 12:50:30+00"
FREEZE = f"""
CREATE OR REPLACE FUNCTION moment() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT timestamptz '{NOW}' + coalesce(nullif(current_setting('moorage.clock_shift', true), ''), '0')::interval
$$
"""
HOURS = 25  # that the first run counts
REOPEN_DEAD_OUTPUTS = """
UPDATE outputs SET state = 'waiting', run_at = moment(), ended_at = NULL, category = NULL
 WHERE state = 'dead' AND ended_at > moment() - interval '20 h'
"""


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return stack.postgres.create_database("ended_counts", template=template_database)


@pytest.fixture(scope="module")
def _filled(url: str) -> None:
    with connect(url) as conn:
        conn.execute(FREEZE)
        history.fill(conn, 2000)
        conn.execute(CLEAR_EDGES)


@pytest.fixture
def rows(url: str, _filled: None) -> Iterator[Connection]:
    """Give a connection to a database with 250 jobs of the last day, of which nothing is counted."""
    with connect(url) as conn:
        conn.execute("TRUNCATE ended_counts; DELETE FROM cursors")
        yield conn


def count(conn: Connection, hours: int = 1000) -> int:
    """Run the sweep for at most so many hours; returns how many it counted."""
    done = 0
    while done < hours:
        with conn.transaction():
            if not ended_counts.count_next_hour(conn):
                break
        done += 1
    return done


def gauges(conn: Connection) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for name, sql in GAUGES.items():
        for row in conn.execute(sql).fetchall():
            key = (name, row["provider"] + row["ended_by"] if name == "predictions" else row["state"])
            found[key] = found.get(key, 0) + int(row["value"])
    return found


def expected(conn: Connection) -> dict[tuple[str, str], int]:
    return {(row["gauge"], row["label"]): row["value"] for row in conn.execute(EXPECTED).fetchall()}


def counted(conn: Connection) -> list[dict[str, Any]]:
    sql = "SELECT subject, slot_at, state, detail, provider, value FROM ended_counts ORDER BY 1, 2, 3, 4, 5"
    return conn.execute(sql).fetchall()


@pytest.mark.parametrize("hours", [0, 7, HOURS])
def test_a_gauge_tells_what_the_rows_tell_however_far_the_sweep_is(rows: Connection, hours: int) -> None:
    """A sweep that is late, or new, must not make an alert fire, or silent."""
    assert count(rows, hours) == hours

    assert gauges(rows) == expected(rows)
    assert expected(rows)[("outputs", "kept")] > 500
    assert bool(counted(rows)) == bool(hours)


def test_a_scrape_reads_no_row_that_is_counted(rows: Connection) -> None:
    """That is what the counts are for."""
    count(rows)
    before = gauges(rows)
    rows.execute("UPDATE cursors SET moved_at = moment() + interval '1 h' WHERE sweep = 'counts'")

    told = gauges(rows)

    kept = ("outputs", "kept")
    assert 0 <= before[kept] - told[kept] < 20  # those of the last minutes only


def test_a_second_run_counts_nothing_twice(rows: Connection) -> None:
    """A run whose tick died after its commit is repeated."""
    count(rows)
    first = counted(rows)

    rows.execute("UPDATE cursors SET moved_at = moved_at - interval '3 h' WHERE sweep = 'counts'")
    assert count(rows) == 3

    assert counted(rows) == first


def test_two_runs_at_once_count_as_one(rows: Connection, url: str) -> None:
    """A tick that outlasts its period has a second one beside it."""

    def run() -> None:
        with connect(url) as conn:
            count(conn)

    together(run, run)

    first = counted(rows)
    rows.execute("DELETE FROM cursors; DELETE FROM ended_counts")
    count(rows)
    assert counted(rows) == first


def test_an_end_that_was_committed_late_is_counted_by_the_next_run(rows: Connection) -> None:
    """Its time is that of the statement: the slot may have been counted before the commit."""
    count(rows)
    rows.execute("UPDATE outputs SET ended_at = moment() - interval '30 min' WHERE id = (SELECT id FROM outputs"
                 " WHERE state = 'kept' AND ended_at < moment() - interval '30 h' ORDER BY id LIMIT 1)")  # fmt: skip

    assert gauges(rows) != expected(rows)
    rows.execute("SET moorage.clock_shift = '5 min'")
    assert count(rows) == 1

    assert gauges(rows) == expected(rows)


def test_a_row_that_was_reopened_leaves_its_count_within_two_hours(rows: Connection) -> None:
    """It ends once more, and must then be counted where it ended last."""
    count(rows)
    assert rows.execute(REOPEN_DEAD_OUTPUTS).rowcount > 5
    assert gauges(rows) != expected(rows)

    for run in range(1, 25):
        rows.execute(f"SET moorage.clock_shift = '{run * 5} min'".encode())
        assert count(rows) == 1
    with rows.transaction():
        rows.execute("SET LOCAL moorage.clock_shift = '0'")
        told, rest = gauges(rows), expected(rows)

    assert told.get(("outputs", "dead")) == rest.get(("outputs", "dead"))


def test_each_hour_of_the_last_day_is_counted_again_within_two_hours() -> None:
    """At whatever slot the two hours begin."""
    for first in range(0, 86_400, 300):
        day = datetime(2026, 11, 29, tzinfo=UTC) + timedelta(seconds=first)
        ends = [day + timedelta(minutes=5 * run) for run in range(24)]
        again = {ended_counts.choose_older_hour(end) + timedelta(minutes=n) for end in ends for n in range(0, 60, 5)}
        recent = {end - timedelta(minutes=n) for end in ends for n in range(5, 65, 5)}
        assert again | recent >= {day - timedelta(minutes=n) for n in range(5, 22 * 60, 5)}


def test_a_clock_that_was_set_back_is_followed(rows: Connection) -> None:
    """Else nothing would be counted until the old time is reached."""
    rows.execute("SET moorage.clock_shift = '3 h'")
    count(rows)
    rows.execute("RESET moorage.clock_shift")

    assert count(rows) == 1
    assert count(rows) == 0

    assert gauges(rows) == expected(rows)
