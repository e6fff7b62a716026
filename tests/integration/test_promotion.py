"""Two servers with streaming replication: the primary dies and its standby is promoted."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from db.connection import Database, connect
from embedded.stack import Stack
from embedded.standby import Standby
from moorage.errors import DatabaseUnavailable
from tasks.sweeps import reconcile
from tests.integration.core import LEASED_BY, world
from tests.support.standby import replicated


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    with replicated(tmp_path) as made:
        yield made


def test_a_step_continues_on_the_promoted_standby(stack: Stack, standby: Standby) -> None:
    """The worker started its step on one server and records it on the other, by the setting DATABASE_URL alone."""
    url = standby.both_url("moorage")
    with pytest.raises(DatabaseUnavailable, match=r"refused \(25006\)"), closing(standby.url()) as only_standby:
        only_standby.run(lambda conn: conn.execute("INSERT INTO pauses (target, paused_by) VALUES ('keep', 'test')"))

    with world(stack, url) as at:
        job_id = at.keeping([at.source.picture()]).job_id
        (output_id,) = at.outputs(job_id)
        reconcile.release_leases(at.deps, LEASED_BY)
        before = at.one("SELECT place FROM cursors WHERE sweep = 'timeline'")

        def fail_over(_path: str) -> None:
            standby.primary.kill()
            standby.promote()

        at.source.before_file = fail_over
        at.step("keep", output_id)
        at.conn.close()
        at.conn = connect(url)

        row = at.row("outputs", output_id)
        assert (row["state"], row["attempt"], row["crashes"]) == ("kept", 1, 0)
        assert at.state("jobs", job_id) == "succeeded"
        reconcile.release_leases(at.deps, LEASED_BY)
        assert at.one("SELECT place FROM cursors WHERE sweep = 'timeline'") > before
        assert at.one("SELECT moved_at > clock_timestamp() - interval '1 h' FROM cursors WHERE sweep = 'timeline'")
        at.conn.close()


def closing(url: str) -> contextlib.closing[Database]:
    """Return a database that is closed at the end."""
    return contextlib.closing(Database(url))
