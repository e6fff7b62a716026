"""What Flower shows, and what the rows say: read through Flower's API and from PostgreSQL, compared one by one."""

import json
import re
import time
from collections import Counter
from typing import Any
from uuid import UUID

import requests

from simulation.provider.webhooks import sign
from tests.acceptance.world import World, until

# A task that did no work on the row says so, and nothing of the row's state.
NO_WORK = re.compile(r"nothing to claim|not claimed|handed back|lease was lost|lease expires")
# How the last task of each row must have ended. A file whose URL is refused is shown by the task that refused it.
EXPECTED = """
SELECT id::text, 'moorage.keep' AS task, CASE state WHEN 'dead' THEN 'FAILURE' WHEN 'waiting' THEN 'RETRY'
       ELSE 'SUCCESS' END AS expected FROM outputs
 WHERE (attempt > 0 OR state = 'dead') AND lease_token IS NULL AND created_at > %(since)s
UNION ALL SELECT id::text, 'moorage.ingest', CASE WHEN state = 'dead' THEN 'FAILURE' WHEN state = 'unmatched'
       THEN 'RETRY' ELSE 'SUCCESS' END FROM deliveries WHERE lease_token IS NULL AND received_at > %(since)s
UNION ALL SELECT id::text, 'moorage.notify', CASE state WHEN 'dead' THEN 'FAILURE' WHEN 'waiting' THEN 'RETRY'
       ELSE 'SUCCESS' END FROM notifications WHERE attempt > 0 AND lease_token IS NULL AND created_at > %(since)s
"""


class FlowerView:
    def __init__(self, url: str, user: tuple[str, ...]) -> None:
        self.url, self.user = url, user

    def list_tasks(self, **filters: str) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.url}/api/tasks", params={"limit": "20000", **filters}, auth=self.user, timeout=60)
        return list(answer.json().values())

    def last_by_row(self) -> dict[str, dict[str, Any]]:
        """Return the last ended task of each row that did work on it, by the row's id."""
        ended = [task for task in self.list_tasks() if task["state"] in ("SUCCESS", "RETRY", "FAILURE")]
        worked = [task for task in ended if not NO_WORK.search(str(task["result"]))]
        return {task["args"]: task for task in sorted(worked, key=lambda task: task["timestamp"])}

    def count_events(self) -> Counter[str]:
        """Return flower_events_total by type, of all workers and steps."""
        text = requests.get(f"{self.url}/metrics", auth=self.user, timeout=60).text
        counts: Counter[str] = Counter()
        for kind, value in re.findall(r'^flower_events_total\{.*type="([a-z-]+)".*\} (\S+)$', text, re.MULTILINE):
            counts[kind] += int(float(value))
        return counts


def find_differences(world: World, flower: FlowerView, since: Any) -> dict[str, tuple[str, Any]]:
    """Return the rows whose last task did not end as they did, with both."""
    shown = flower.last_by_row()
    rows = world.rows(EXPECTED, since=since)
    found = {row["id"]: (row["expected"], shown.get(row["id"], {}).get("state")) for row in rows}
    return {row_id: states for row_id, states in found.items() if states[0] != states[1]}


def send_webhook(world: World, webhook_id: str, body: bytes) -> None:
    stamp = str(int(time.time()))
    signature = sign(world.standin.secret, webhook_id, stamp, body)
    headers = {"webhook-id": webhook_id, "webhook-timestamp": stamp, "webhook-signature": signature}
    assert requests.post(world.hook, data=body, headers=headers, timeout=30).status_code == 202


def cause_outcomes(world: World, count: int) -> None:
    """Have rows end in each way, `count` times: kept, gone, never answered, unreadable, unregistered, poison."""
    faults = {"1": "404_always", "2": "429_once", "3": "500_always", "4": "corrupt", "5": "other_host"}
    jobs = [world.ask({"outputs": 6, "faults": faults}) for _ in range(count)]
    for number in range(count):
        send_webhook(world, f"garbage-{time.time_ns()}", b"{garbage")
        send_webhook(
            world, f"stray-{time.time_ns()}", json.dumps({"id": f"stray{number}", "status": "starting"}).encode()
        )
    ids = [job.job_id for job in jobs]
    until(lambda: rest(world, ids) == count, "the file that is never served waits", seconds=300)
    poison = "UPDATE outputs SET crashes = 5, run_at = moment() WHERE job_id = ANY(%(ids)s) AND idx = 3 RETURNING id"
    assert len(world.rows(poison, ids=ids[::2])) == len(ids[::2])


def rest(world: World, ids: list[UUID]) -> int:
    """Postpone attempts at files that no job waits for; return how many jobs ended and have no due file."""
    live = "state = 'waiting' AND deferred_at IS NOT NULL AND job_id = ANY(%(ids)s)"
    postpone = (
        f"UPDATE outputs SET run_at = moment() + interval '1 day' WHERE {live} AND lease_token IS NULL RETURNING id"
    )
    world.rows(postpone, ids=ids)
    due = "state = 'waiting' AND run_at < moment() + interval '1 hour'"
    ended = f"""
SELECT count(*) AS n FROM jobs j WHERE id = ANY(%(ids)s) AND state = 'partial'
   AND NOT EXISTS (SELECT FROM outputs WHERE job_id = j.id AND {due})
"""
    return int(world.one(ended, ids=ids)["n"])
