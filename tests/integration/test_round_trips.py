"""SQL round trips of the path of a webhook, by step."""

from collections.abc import Iterator

import pytest

from bench.round_trips import RoundTripCounter, count_webhook_path
from embedded.stack import Stack
from tests.integration.core import World, database_of, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "round_trips")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (1, {"register": 2, "receive": 1, "ingest": 3, "keep": 4}),
        (4, {"register": 2, "receive": 1, "ingest": 3, "keep": 13}),
    ],
)
def test_round_trips_of_a_webhook(at: World, files: int, expected: dict[str, int]) -> None:
    """A round trip too many is not seen in any other test, and costs at every file."""
    counter = RoundTripCounter()

    job = count_webhook_path(at.deps, counter, [at.source.picture(seed) for seed in range(files)])

    assert at.state("jobs", job.job_id) == "succeeded"
    assert dict(counter.runs) == {"register": 1, "receive": 1, "ingest": 1, "keep": files}
    assert dict(counter.round_trips) == expected
