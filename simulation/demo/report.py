"""What the demo prints at its end."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from db.connection import Connection, fetch_all
from simulation.demo.api_client import Ordered
from simulation.demo.event_stream import Follower
from simulation.demo.registered import Started
from simulation.demo.webhook_listener import Listener

JOBS = "SELECT state, count(*) AS count FROM jobs GROUP BY 1 ORDER BY 2 DESC"

OUTPUTS = "SELECT state, count(*) AS count, sum(bytes) AS bytes FROM outputs GROUP BY 1 ORDER BY 2 DESC"

RETRIES = """
SELECT count(*) FILTER (WHERE subject = 'output') AS files, count(*) FILTER (WHERE subject = 'delivery') AS webhooks
  FROM events WHERE from_state = to_state AND to_state IN ('waiting', 'new')
"""

DEAD = """
SELECT category, error, count(*) AS count, min(reason) AS example
  FROM dead_letters WHERE state = 'open'
 GROUP BY category, error, regexp_replace(reason, '[a-z0-9]*[0-9][a-z0-9]*', '*', 'g') ORDER BY 3 DESC, 1, 2
"""

POLLED = "SELECT count(*) AS count FROM predictions WHERE ended_by = 'poll' AND entry IS NULL"

# In the busiest second: the demo's load is too small and too much apart to speak of a rate over all of it.
SPEED = """
SELECT (SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY received_at
                            RANGE BETWEEN CURRENT ROW AND interval '1 s' FOLLOWING) AS n FROM deliveries) d) AS accepts,
       (SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY ended_at
                            RANGE BETWEEN CURRENT ROW AND interval '1 s' FOLLOWING) AS n
                              FROM outputs WHERE state = 'kept') o) AS outputs
"""


def show(
    console: Console, conn: Connection, summary: dict[str, Any], started: Sequence[Started], findings: Sequence[object]
) -> None:
    """Print the table of what was sent, accepted and kept."""
    table = Table(title="What was sent, and what became of it", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    refused = len(summary["unacknowledged"])
    table.add_row("predictions started", f"{summary['predictions']}: {_started(started, summary)}")
    table.add_row(
        "webhooks",
        f"{summary['webhook_attempts']} requests, {len(summary['acknowledged'])} accepted, {refused} refused for good",
    )
    table.add_row("found by polling", f"{fetch_all(conn, POLLED)[0]['count']} predictions whose webhook never came")
    table.add_row("jobs", _by_state(fetch_all(conn, JOBS)))
    table.add_row("files", _by_state(fetch_all(conn, OUTPUTS)))
    retries = fetch_all(conn, RETRIES)[0]
    table.add_row("retries", f"{retries['files']} of files, {retries['webhooks']} of webhooks")
    for row in fetch_all(conn, DEAD):
        table.add_row(f"dead letters: {row['count']}", f"{row['category']} {row['error']}: {row['example']}")
    table.add_row("audit", "clean" if not findings else f"{len(findings)} findings")
    speed = fetch_all(conn, SPEED)[0]
    table.add_row("busiest second", f"{speed['accepts']} accepts/s, {speed['outputs']} outputs/s kept")
    console.print(table)


def show_orders(console: Console, placed: Sequence[Ordered], project: dict[str, Any]) -> None:
    """Print what became of each order, and of the project that some were for."""
    table = Table(title="What was ordered, POST /v1/jobs, and what became of it", title_justify="left", box=None)
    for column in ("order", "tried at", "job", "shown", "scene"):
        table.add_column(column, no_wrap=True)
    for one in placed:
        shown = one.shown
        tried = ", ".join(_try(prediction) for prediction in shown["predictions"] if prediction["entry"] is not None)
        table.add_row(one.order.name, tried, shown["state"], _shown(shown["variants"]), shown["scene"])
    console.print(table)
    progress = project["progress"]
    console.print(
        f"project {project['project_id']}: {project['status']}, {progress['files_kept']} files in"
        f" {len(project['document']['scenes'])} scenes, {progress['placeholders']} placeholder"
    )


def show_told(console: Console, listener: Listener, follower: Follower) -> None:
    """Print what the application heard: of its jobs' ends by webhook, of every edge by the stream."""
    ends = Counter(one.type.removeprefix("job.") for one in {one.sequence: one for one in listener.told}.values())
    kinds = ", ".join(f"{count} {name}" for name, count in ends.most_common())
    console.print(
        f"webhooks out: {listener.answers.total()} requests, {listener.answers[503]} answered 503 and sent again;"
        f" {ends.total()} ends of {len({one.job_id for one in listener.told})} jobs: {kinds}"
    )
    resumed = ", ".join(str(last) for last in follower.connections[1:])
    console.print(f"stream of events: {len(follower.events)} events, left once and resumed behind event {resumed}")


def _try(prediction: dict[str, Any]) -> str:
    state = prediction["state"]
    return str(prediction["provider"]) + ("" if state == "succeeded" else f" ({state})")


def _shown(variants: Sequence[dict[str, Any]]) -> str:
    if any(variant["is_placeholder"] for variant in variants):
        return "placeholder"
    kind = variants[0]["media"] if variants else "file"
    return f"{len(variants)} {kind}{'' if len(variants) == 1 else 's'}"


def _started(started: Sequence[Started], summary: dict[str, Any]) -> str:
    registered = sum(1 for one in started if one.job_id is not None)
    ordered = summary["predictions"] - len(started)
    nobody = len(started) - registered
    return f"{registered} registered by the application, {ordered} ordered by moorage, {nobody} by nobody"


def _by_state(rows: Sequence[dict[str, Any]]) -> str:
    total = sum(row["count"] for row in rows)
    return f"{total}: " + ", ".join(f"{row['count']} {row['state']}" for row in rows)
