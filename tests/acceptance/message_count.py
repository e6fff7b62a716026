"""How many messages a broker carries for tasks that end as RETRY or FAILURE: as many as were sent, and none stays."""

from collections import Counter
from collections.abc import Callable

from celery import Celery

from tests.acceptance.world import World, until

LIVE = "SELECT id FROM outputs WHERE job_id = %(id)s AND state = 'waiting' ORDER BY idx"
TRIED = """
SELECT array_agg(state || attempt ORDER BY idx) AS ended FROM outputs WHERE job_id = %(id)s AND lease_token IS NULL
"""


def check_messages(
    world: World, depth: Callable[[], int], push: Callable[[str], None], purge: Callable[[], object]
) -> None:
    """Send four wakes: for a file that is kept, for one that is gone, and two for one that is never served."""
    keepers = [name for name in world.local.processes if name.startswith("keep")]
    with world.without("beat1", "sweeps"):  # nothing else sends wakes
        with world.without(*keepers):
            purge()
            asked = world.ask({"outputs": 3, "faults": {"1": "404_always", "2": "500_always"}})
            rows = until(lambda: len(rows := world.rows(LIVE, id=asked.job_id)) == 3 and rows, "three files wait")
            until(lambda: depth() == 3, "their wakes")  # published after the commit: one purged too early comes later
            purge()
        until(lambda: enable_events(world) >= len(keepers), "events are on: else no task ends as RETRY or FAILURE")
        for row in rows:
            push(str(row["id"]))
        until(lambda: world.one(TRIED, id=asked.job_id)["ended"] == ["kept1", "dead1", "waiting1"], "each was tried")
        again = "UPDATE outputs SET run_at = {} WHERE id = %(id)s RETURNING id"
        world.rows(again.format("moment()"), id=rows[2]["id"])
        push(str(rows[2]["id"]))
        until(lambda: world.one(TRIED, id=asked.job_id)["ended"] == ["kept1", "dead1", "waiting2"], "one tried again")
        world.rows(again.format("moment() + interval '1 day'"), id=rows[2]["id"])
        counted = until(lambda: count_idle(world), "the workers are idle")
        with world.without(*keepers):
            left = depth()

    assert counted == {"moorage.keep": 4}, counted
    assert left == 0


def enable_events(world: World) -> int:
    """Have the workers send events, as Flower does; return how many of the queue `keep` do."""
    with Celery(broker=world.local.environment()["CELERY_BROKER_URL"], set_as_current=False) as asker:
        replies = asker.control.broadcast("enable_events", reply=True, timeout=2, limit=count_workers(world))
    return sum(node.startswith("keep") for reply in replies or () for node in reply)


def count_workers(world: World) -> int:
    """Return how many replies to wait for: none comes from `sweeps`, which is stopped."""
    return sum(name.startswith(("quick", "keep")) for name in world.local.processes)


def count_idle(world: World) -> Counter[str] | None:
    """Return how many tasks the workers of the queue `keep` have accepted since their start; None while one works."""
    with Celery(broker=world.local.environment()["CELERY_BROKER_URL"], set_as_current=False) as asker:
        look = asker.control.inspect(timeout=5, limit=count_workers(world))
        stats, active = look.stats() or {}, look.active() or {}
    total: Counter[str] = Counter()
    for node, stat in stats.items():
        if node.startswith("keep"):
            total.update(stat["total"])
    return None if any(active.values()) else total
