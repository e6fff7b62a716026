"""
SQL round trips of the path of a webhook, by step: from the registration of its prediction to its published render.

Counted in libpq's own trace of the connection: one each time it waits for the server after it has sent something. So
a pipeline counts once for each time that its results are waited for.
"""

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from psycopg import pq

from moorage import ids
from moorage.model import Registration, Step, Wake
from receiver.connection_pool import ConnectionPool
from receiver.deliveries import NewDelivery, insert_deliveries
from tasks.jobs import create
from tasks.step import Deps
from worker import step_runner

LEASED_BY = "node@bench/1"


class RoundTripCounter:
    """Counts of round trips and of runs by step."""

    def __init__(self) -> None:
        self.round_trips: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()

    @contextlib.contextmanager
    def count(self, step: str, pgconn: pq.abc.PGconn) -> Iterator[None]:
        """Count what a connection waits for during the block. It must stay the same connection."""
        with tempfile.TemporaryFile("r") as trace:
            pgconn.trace(trace.fileno())
            try:
                yield
            finally:
                pgconn.untrace()
            trace.seek(0)
            sides = [line.split("\t")[1] for line in trace if line.count("\t") > 1]
        self.runs[step] += 1
        self.round_trips[step] += sum(a == "F" and b == "B" for a, b in itertools.pairwise(sides))

    def total(self) -> int:
        return self.round_trips.total()


def count_webhook_path(
    deps: Deps, counter: RoundTripCounter, urls: Sequence[str], **registration: Any
) -> create.CreatedJob:
    """Register a prediction at Replicate, receive its webhook with these files, and process it to the end."""
    external_id = str(ids.uuid7())
    given = Registration(provider="replicate", external_id=external_id, **{"owner": "bench", **registration})
    pgconn = deps.database.connection().pgconn
    with counter.count("register", pgconn):
        job = create.register_prediction(deps.database, deps.settings, deps.providers["replicate"], given)
    body = json.dumps({"id": external_id, "status": "succeeded", "output": list(urls)}).encode()
    wakes = [Wake("ingest", asyncio.run(_receive(deps, counter, external_id, body)))]
    while wakes:
        wake = wakes.pop(0)
        wakes += run_step(deps, counter, wake.step, wake.row_id)
    return job


def run_step(deps: Deps, counter: RoundTripCounter, step: Step, row_id: UUID) -> list[Wake]:
    """Run a step as a worker does, without its process."""
    with counter.count(step, deps.database.connection().pgconn):
        return step_runner._claim_and_run(deps, step, row_id, LEASED_BY).wakes


async def _receive(deps: Deps, counter: RoundTripCounter, webhook_id: str, body: bytes) -> UUID:
    delivery = NewDelivery(ids.uuid7(), "replicate", webhook_id, {}, body, "")
    pool = ConnectionPool(deps.settings.database_url.get_secret_value())
    async with pool.acquire() as conn:
        with counter.count("receive", conn.pgconn):
            await insert_deliveries(conn, [delivery])
    await pool.close()
    return delivery.id
