"""The report of the demo, and its check of the project."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from db.connection import Connection, fetch_all
from simulation.cases import Body, CaseRun
from simulation.demo.application import Application
from simulation.demo.cases import PROJECT
from simulation.demo.event_stream import StreamFollower
from simulation.demo.webhook_listener import WebhookListener

JOBS = "SELECT state, count(*) AS count FROM jobs GROUP BY 1 ORDER BY 2 DESC"
OUTPUTS = "SELECT state, count(*) AS count FROM outputs GROUP BY 1 ORDER BY 2 DESC"

DEAD = """
SELECT category, error, count(*) AS count, min(reason) AS example
  FROM dead_letters WHERE state = 'open'
 GROUP BY category, error, regexp_replace(reason, '[a-z0-9]*[0-9][a-z0-9]*', '*', 'g') ORDER BY 3 DESC, 1, 2
"""


def check_project(project: Body, runs: Sequence[CaseRun]) -> list[str]:
    """Return the differences between the project's scenes and the files that their jobs published."""
    differences = [] if project["status"] == "assets_generated" else [f"project {PROJECT} is {project['status']}"]
    visible = {scene["id"]: scene["imageUrls"] for scene in project["document"]["scenes"]}
    for run in runs:
        if run.case.project == PROJECT:
            urls, scene = [variant["url"] for variant in run.view["variants"]], run.case.scene
            if visible.get(scene) != urls:
                differences.append(f"scene {scene} shows {visible.get(scene)}, its job published {urls}")
    return differences


def print_totals(
    console: Console, conn: Connection, summary: Body, application: Application, findings: Sequence[object]
) -> None:
    table = Table(title="Sent, accepted and kept", show_header=False, title_justify="left")
    table.add_column(style="bold")
    started, registered = len(application.registered), sum(1 for run in application.registered if run.job_ids)
    submitted = f"{summary['predictions'] - started} submitted by moorage, {started - registered} unregistered"
    table.add_row("predictions", f"{summary['predictions']}: {registered} registered by the application, {submitted}")
    webhooks = f"{summary['webhook_attempts']} requests, {len(summary['acknowledged'])} accepted"
    table.add_row("webhooks", f"{webhooks}, {len(summary['unacknowledged'])} rejected")
    table.add_row("jobs", _describe_states(fetch_all(conn, JOBS)))
    table.add_row("files", _describe_states(fetch_all(conn, OUTPUTS)))
    for row in fetch_all(conn, DEAD):
        table.add_row(f"dead letters: {row['count']}", f"{row['category']} {row['error']}: {row['example']}")
    table.add_row("audit", "clean" if not findings else f"{len(findings)} findings")
    console.print(table)


def print_job_requests(console: Console, runs: Sequence[CaseRun], project: Body) -> None:
    table = Table(title="Job requests, POST /v1/jobs, and their results", title_justify="left", box=None)
    for column in ("job request", "predictions at", "job", "shown", "scene"):
        table.add_column(column, no_wrap=True)
    for run in runs:
        view = run.view
        submitted = [(p["provider"], p["state"]) for p in view["predictions"] if p["entry"] is not None]
        predictions = ", ".join(p if state == "succeeded" else f"{p} ({state})" for p, state in submitted)
        table.add_row(run.case.name, predictions, view["state"], _describe_files(view["variants"]), view["scene"])
    console.print(table)
    progress = project["progress"]
    console.print(
        f"project {project['project_id']}: {project['status']}, {progress['files_kept']} files in"
        f" {len(project['document']['scenes'])} scenes, {progress['placeholders']} placeholder"
    )


def print_notifications(console: Console, listener: WebhookListener, follower: StreamFollower) -> None:
    """Print totals of the webhooks to the application and of the event stream."""
    ends = Counter(end.type.removeprefix("job.") for end in {end.sequence: end for end in listener.received}.values())
    kinds = ", ".join(f"{count} {name}" for name, count in ends.most_common())
    statuses = listener.statuses
    console.print(
        f"webhooks to the application: {statuses.total()} requests, {statuses[503]} got a 503 and were sent again;"
        f" {ends.total()} ends of {len({end.job_id for end in listener.received})} jobs: {kinds}"
    )
    resumed = ", ".join(str(last) for last in follower.connections[1:])
    console.print(f"event stream: {len(follower.events)} events, disconnected once and resumed after event {resumed}")


def _describe_files(variants: Sequence[Body]) -> str:
    if any(variant["is_placeholder"] for variant in variants):
        return "placeholder"
    kind = variants[0]["media"] if variants else "file"
    return f"{len(variants)} {kind}{'' if len(variants) == 1 else 's'}"


def _describe_states(rows: Sequence[dict[str, Any]]) -> str:
    total = sum(row["count"] for row in rows)
    return f"{total}: " + ", ".join(f"{row['count']} {row['state']}" for row in rows)
