"""All processes of moorage behind PgBouncer in transaction mode, with four connections to PostgreSQL."""

from collections.abc import Iterator

import psycopg
import pytest

from embedded.stack import Stack
from tests.acceptance.world import World
from tests.support.pgbouncer import SERVER_CONNECTIONS, Pgbouncer, needs_pgbouncer
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment

pytestmark = [
    pytest.mark.prove,
    needs_pgbouncer,
]  # a system of its own; integration/test_pgbouncer.py is the short form

JOBS = 60
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'moorage' AND pid <> pg_backend_pid()"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pgbouncer")
    with Stack(folder / "stack") as stack, Standin().start(folder / "standin") as standin:
        pgbouncer = Pgbouncer(folder / "pgbouncer", stack.postgres)
        pgbouncer.start()
        overrides = {"DATABASE_URL": pgbouncer.url("moorage")}
        try:
            with LocalDeployment(
                folder / "local", keep_workers=2, standin=standin, stack=stack, overrides=overrides
            ) as local:
                made = World(local, standin, folder)
                yield made
                made.close()
        finally:
            pgbouncer.stop()


@pytest.mark.timeout(600)
def test_sixty_jobs_run_over_four_sessions(alone: World) -> None:
    """No setting, lock or prepared statement belongs to a session."""
    asked = [alone.ask({"outputs": 3}) for _ in range(JOBS)]
    alone.await_end(*asked, seconds=300)

    with psycopg.connect(alone.local.stack.postgres.url("moorage")) as conn:
        (sessions,) = conn.execute(SESSIONS).fetchone() or (0,)
    assert 0 < sessions <= SERVER_CONNECTIONS
    for one in asked:
        assert alone.job(one)["state"] == "succeeded"
        alone.check(one)
    assert alone.rows("SELECT * FROM dead_letters") == []
