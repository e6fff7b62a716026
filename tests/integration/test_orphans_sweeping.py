"""The nightly sweeps as a worker runs them: once a minute at most, with their results on the tick."""

import time
from collections.abc import Iterator

import pytest

from db.connection import Connection
from embedded.stack import Stack
from moorage.errors import StorageRefused
from tasks.step import Deps
from tasks.sweeps import orphans
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.support import fork_server

TWICE = """
from worker import sweep_runner
for name in ("orphans", "retention", "usage", "counts"):
    sweep_runner.run_sweep(name, "node/1")
    sweep_runner.run_sweep(name, "node/2")
"""


def test_a_nightly_sweep_runs_once_in_its_minute(stack: Stack, database_url: str, deps: Deps, conn: Connection) -> None:
    """Two beats tick in the same second; the second finds the slot taken."""
    world.kept(deps)
    env = cli.environment(stack, database_url)

    began = time.monotonic()
    done = fork_server.run(["-c", TWICE], env=env, cwd=cli.ROOT)
    minutes = (time.monotonic() - began) // 60

    assert done.returncode == 0, done.stderr
    ticks = {row["sweep"]: row for row in conn.execute("SELECT sweep, finished_at, result FROM ticks").fetchall()}
    assert set(ticks) == {"orphans", "retention", "usage", "counts"}
    assert ticks["usage"]["result"]["public"]["objects"] == 2
    assert all(tick["finished_at"] for tick in ticks.values())
    slots = conn.execute("SELECT count(*) AS n FROM ticks").fetchall()
    assert slots[0]["n"] <= 5 + minutes  # a minute may end between two runs, but not between all of them


POINTS = (
    "orphans.after_tick",
    "retention.after_tick",
    "usage.after_tick",
    "orphans.before_finish",
    "retention.before_finish",
    "usage.before_finish",
    "orphans.after_finish",
    "retention.after_finish",
    "usage.after_finish",
    "usage.after_page",
    "counts.after_tick",
    "counts.after_hour",
    "counts.before_finish",
    "counts.after_finish",
)


@pytest.mark.parametrize("point", POINTS)
def test_a_night_in_which_the_sweep_dies_costs_one_run(
    stack: Stack, database_url: str, deps: Deps, conn: Connection, point: str
) -> None:
    """Its slot is taken and stays so; the next slot is free."""
    name = point.partition(".")[0]
    env = cli.environment(stack, database_url)
    if point == "usage.after_page":
        world.kept(deps)
    sweep = ["-c", f"from worker import sweep_runner; sweep_runner.run_sweep({name!r}, 'node/1')"]

    killed = fork_server.run(sweep, env={**env, "MOORAGE_FAILPOINT": point}, cwd=cli.ROOT)
    left = conn.execute("SELECT finished_at FROM ticks").fetchall()
    conn.execute("UPDATE ticks SET slot = slot - 1")  # a minute goes by
    done = fork_server.run(sweep, env=env, cwd=cli.ROOT)

    assert killed.returncode == -9
    is_told = point.endswith(".after_finish")
    assert [row["finished_at"] is not None for row in left] == [is_told]
    assert done.returncode == 0, done.stderr
    assert conn.execute("SELECT finished_at IS NOT NULL AS is_done FROM ticks ORDER BY slot").fetchall() == [
        {"is_done": is_told},
        {"is_done": True},
    ]


def test_the_place_survives_a_run_that_breaks_off(
    deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that storage ends goes on at its last page the next night, not at the beginning."""
    world.kept(deps, "a")
    world.kept(deps, "b")
    monkeypatch.setattr(orphans, "_PAGE", 1)
    listing = deps.storage.list_objects

    def breaking(bucket: str, prefix: str, start_after: str = "") -> Iterator[object]:
        for number, listed in enumerate(listing(bucket, prefix, start_after)):
            if number == 2:
                raise StorageRefused("list: 403")
            yield listed

    monkeypatch.setattr(deps.storage, "list_objects", breaking)

    with pytest.raises(StorageRefused):
        orphans.sweep_orphans(deps)
    first = conn.execute("SELECT place, after_key FROM cursors").fetchall()
    monkeypatch.setattr(deps.storage, "list_objects", listing)
    second = orphans.sweep_orphans(deps)

    everything = list(deps.storage.list_objects(deps.storage.public_bucket, "renders/"))
    assert first == [{"place": "public renders/", "after_key": everything[1].key}]
    assert second["at_end"]
    assert conn.execute("SELECT place FROM cursors").fetchall() == []
