"""Behind PgBouncer in transaction mode: many clients, four sessions, and none of them belongs to anybody."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from db.connection import connect
from embedded.stack import Stack
from moorage.errors import DatabaseLocked, DatabaseUnavailable
from tests.integration.core import World, wait_until, world
from tests.support.pgbouncer import SERVER_CONNECTIONS, Pgbouncer, needs_pgbouncer

pytestmark = needs_pgbouncer

CLIENTS = 12
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def others(database_url: str) -> list[int]:
    """Sessions that earlier tests left for the next ones."""
    with contextlib.closing(connect(database_url)) as direct:
        return [row["pid"] for row in direct.execute(SESSIONS).fetchall()]


@pytest.fixture
def at(stack: Stack, database_url: str, tmp_path: Path) -> Iterator[World]:
    pgbouncer = Pgbouncer(tmp_path / "pgbouncer", stack.postgres)
    with contextlib.ExitStack() as stops:
        stops.callback(pgbouncer.stop)
        pgbouncer.start()
        with world(stack, pgbouncer.url(database_url.rpartition("/")[2])) as made:
            yield made


def is_kept(at: World, output_id: UUID) -> bool:
    """Run the step; return False where PgBouncer did not answer in its three seconds, as on a busy machine."""
    with contextlib.suppress(DatabaseUnavailable):
        at.step("keep", output_id)
    return at.state("outputs", output_id) == "kept"


def test_twelve_clients_share_four_sessions(stack: Stack, others: list[int], at: World) -> None:
    """No statement depends on its session: leases, settings, locks and snapshots end with their transaction."""
    jobs = [at.keeping([at.source.picture(2 * n), at.source.picture(2 * n + 1)]).job_id for n in range(CLIENTS)]

    def keep(job_id: UUID) -> None:
        with at.beside() as deps:
            mine = World(deps, at.conn, at.source, at.database_url)
            for output_id in at.outputs(job_id):
                wait_until(lambda output_id=output_id: is_kept(mine, output_id))

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(keep, jobs))
    with contextlib.closing(connect(stack.postgres.url(at.conn.info.dbname))) as direct:
        sessions = {row["pid"] for row in direct.execute(SESSIONS).fetchall()} - {*others}

    assert {at.state("jobs", job_id) for job_id in jobs} == {"succeeded"}
    assert 0 < len(sessions) <= SERVER_CONNECTIONS


def test_the_holder_of_a_lock_is_named_behind_it(stack: Stack, at: World) -> None:
    """The process id that a client knows is PgBouncer's own, not the session's."""
    job_id = at.keeping([at.source.picture()]).job_id
    lock = "SELECT FROM jobs WHERE id = %s FOR UPDATE"

    with contextlib.closing(connect(stack.postgres.url(at.conn.info.dbname), name="console")) as holder:
        holder.execute("BEGIN")
        holder.execute(lock, (job_id,))

        def named() -> int | None:
            with pytest.raises(DatabaseLocked) as raised:
                at.deps.database.run(lambda conn: conn.execute(lock, (job_id,)), lock_ms=50)
            return raised.value.facts.get("pid")

        assert wait_until(named) == holder.info.backend_pid


def test_no_statement_is_prepared_behind_it(at: World) -> None:
    """It would exist in one of its sessions only, and the next transaction gets another."""
    for output_id in at.outputs(at.keeping([at.source.picture(0), at.source.picture(1)]).job_id):
        wait_until(lambda output_id=output_id: is_kept(at, output_id))

    (row,) = at.deps.database.fetch_all("SELECT count(*) FROM pg_prepared_statements", {})
    assert row["count"] == 0
