"""Keep while storage is away: tried until the URL dies, and counted as nobody's error."""

import dataclasses
from collections.abc import Iterator
from datetime import timedelta

import pytest

from db.connection import current_time
from embedded.stack import Stack
from storage import s3
from tests.integration.core import World, database_of, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "keep_outages")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def without_storage(at: World) -> World:
    """Return this world with storage away."""
    away = s3.ObjectStore(at.deps.settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))
    return dataclasses.replace(at, deps=dataclasses.replace(at.deps, storage=away))


def test_storage_that_is_away_downloads_nothing_and_counts_nothing(at: World) -> None:
    """Our own outage is not the file's fault, however often it is met: a quarter of an hour is 180 tries."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)

    for _ in range(at.deps.settings.max_errors + 2):
        at.conn.execute("UPDATE outputs SET run_at = moment()")
        without_storage(at).step("keep", output_id)

    row = at.row("outputs", output_id)
    assert at.source.asked == []
    assert (row["state"], row["attempt"], row["crashes"]) == ("waiting", 0, 0)
    assert timedelta(0) < row["run_at"] - current_time(at.conn) < timedelta(seconds=30)
    with at.later("15 minutes") as then:
        then.step("keep", output_id)
    assert at.state("jobs", made.job_id) == "succeeded"


def test_storage_that_stays_away_past_the_expiry_ends_nothing(at: World) -> None:
    """The URL may outlive its announcement: only its server can say that it is gone."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)

    for minutes in (121, 130, 140, 150):
        with at.later(f"{minutes} minutes") as then:
            then.conn.execute("UPDATE outputs SET run_at = moment()")
            without_storage(then).step("keep", output_id)
    with at.later("160 minutes") as then:
        then.step("keep", output_id)

    assert at.state("jobs", made.job_id) == "succeeded"
