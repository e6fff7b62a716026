"""Upgrade from schema 23, whose code decided by the end of `raw_status`: rows in flight, and workers that go on."""

from collections.abc import Iterator

import pytest

from db import migrate
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.model import Wake
from tests.integration import old_database
from tests.integration.core import World, prediction, world

# As code of schema 23 records what a poll returns.
RECORD = "UPDATE predictions SET raw_status = %s WHERE id = %s AND ended_at IS NULL"
EMPTY = "succeeded without files"


@pytest.fixture
def url(stack: Stack) -> Iterator[str]:
    yield stack.postgres.create_database("moorage_upgrade_23")
    stack.postgres.drop_database("moorage_upgrade_23")


@pytest.fixture
def old(url: str) -> Iterator[Connection]:
    with connect(url) as conn:
        old_database.create(conn)
        old_database.migrate_to(conn, 23)
        conn.execute("TRUNCATE jobs, deliveries, events, dead_letters, notifications CASCADE")
        yield conn


@pytest.fixture
def at(stack: Stack, url: str, old: Connection) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def test_a_success_without_files_in_flight_is_asked_for_once_more_only(at: World) -> None:
    """The first answer was recorded before the upgrade, the second one comes after it."""
    empty, waiting = at.registered("empty"), at.registered("waiting")
    at.conn.execute(RECORD, (EMPTY, empty.prediction_id))
    at.conn.execute(RECORD, ("processing", waiting.prediction_id))

    assert migrate.migrate(at.conn) == ["0024_predictions_reported", "0025_events_kept"]

    rows = at.conn.execute("SELECT raw_status, was_without_files, is_announced FROM predictions ORDER BY 1").fetchall()
    assert [tuple(row.values()) for row in rows] == [("processing", False, False), ("succeeded", True, False)]
    for made, name, state in ((empty, "empty", "failed"), (waiting, "waiting", "running")):
        at.source.predictions[name] = prediction(name, "succeeded", None)
        at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (made.prediction_id,))
        at.step("poll", made.prediction_id)
        assert at.state("predictions", made.prediction_id) == state


def test_files_of_a_success_that_failed_before_the_upgrade_still_count(at: World) -> None:
    """A late success counts for a job that published nothing."""
    made = at.registered("p1")
    at.conn.execute(
        "UPDATE predictions SET raw_status = %s, state = 'failed', category = 'PROVIDER_FAILED', run_at = NULL,"
        " ended_at = moment(), ended_by = 'poll'",
        (EMPTY,),
    )
    at.conn.execute(
        "UPDATE jobs SET state = 'failed', category = 'PROVIDER_FAILED', run_at = NULL, settled_at = moment()"
    )
    migrate.migrate(at.conn)

    wakes = at.step("ingest", at.delivered(prediction("p1", "succeeded", [at.source.picture()])))

    assert [wake.step for wake in wakes] == ["keep"]
    assert at.state("predictions", made.prediction_id) == "succeeded"
    at.keep_all(made.job_id)


def test_a_worker_of_the_old_version_goes_on(at: World) -> None:
    """What it inserts has the defaults; the success without files that it records is asked for once more."""
    migrate.migrate(at.conn)
    made = at.registered("p1")  # its INSERT is that of schema 23
    inserted = at.row("predictions", made.prediction_id)
    assert (inserted["was_without_files"], inserted["is_announced"]) == (False, False)
    at.conn.execute(RECORD, (EMPTY, made.prediction_id))
    empty = prediction("p1", "succeeded", None)
    at.source.predictions["p1"] = empty

    assert at.step("ingest", at.delivered(empty)) == [Wake("poll", made.prediction_id)]
    at.step("poll", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["ended_by"], row["raw_status"]) == ("failed", "webhook", "succeeded")
