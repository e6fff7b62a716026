"""The time limit of a step in a real worker: a step that is too slow is ended, one that waits for PostgreSQL is not."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from psycopg import sql

from db.connection import connect
from embedded.process import Process
from tests.acceptance.test_kills import await_old_postgres
from tests.acceptance.victims import SLOW
from tests.acceptance.world import World, until

pytestmark = pytest.mark.prove  # an outage must last longer than the limit


@contextlib.contextmanager
def limited_worker(world: World, seconds: float) -> Iterator[Process]:
    """Have files kept by one worker alone whose steps are limited; yields it."""
    with world.without("keep1", "keep2"):
        worker = world.local.add_worker(
            "limited", "-Q", "keep", "-c", "2", MOORAGE_DEV_STEP_SECONDS=str(seconds), MOORAGE_STOP_GRACE_SECONDS="1"
        )
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()
            del world.local.processes["limited"]


@contextlib.contextmanager
def outage(world: World) -> Iterator[None]:
    """Have PostgreSQL refuse all connections to the database, without being restarted."""
    allow = sql.SQL("ALTER DATABASE moorage ALLOW_CONNECTIONS {}")
    with contextlib.closing(connect(world.local.stack.postgres.url("postgres"))) as admin:
        admin.execute(allow.format(sql.SQL("false")))
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'moorage'")
        try:
            yield
        finally:
            admin.execute(allow.format(sql.SQL("true")))


@pytest.mark.timeout(400)  # PostgreSQL must have run for 31 s
def test_a_step_that_waits_for_postgresql_longer_than_its_limit_counts_no_crash(world: World) -> None:
    """Celery ended it after ten minutes; and the first sweep after an outage took its lease before it was renewed."""
    await_old_postgres(world)
    with limited_worker(world, 15) as worker:
        asked = world.ask({**SLOW, "webhook_life_s": 120.0})
        world.await_leased(asked)
        before = worker.list_children()

        began = time.monotonic()
        with outage(world):
            until(lambda: time.monotonic() - began > 30, "the outage was twice as long as the limit")

        world.await_end(asked)
        (output,) = world.outputs(asked)
        assert (output["state"], output["attempt"], output["crashes"]) == ("kept", 1, 0)
        assert worker.list_children() == before
        world.check(asked)


def test_a_step_that_exceeds_its_limit_is_ended_and_repeated(world: World) -> None:
    """A decoder that hangs would occupy its worker for ever."""
    with limited_worker(world, 2):
        asked = world.ask(SLOW)

        world.await_end(asked)

        (output,) = world.outputs(asked)
        died = "SELECT reason FROM events WHERE subject_id = %(id)s AND kind = 'worker_died'"
        assert "SIGALRM" in world.one(died, id=output["id"])["reason"]
        assert (output["state"], output["crashes"]) == ("kept", 1)
