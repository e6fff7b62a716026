"""`moorage status`: rows, queues, workers, sweeps, dead letters and storage on one screen."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any, Final

import click
from rich.table import Table

from cli import console
from cli.console import format_age, format_duration
from db.connection import Row
from db.reports.status import Overview, read_overview
from moorage.errors import MoorageError
from moorage.settings import Settings
from tasks.step import Deps
from worker import boot, inspect_cluster, schedule

ANSWER_SECONDS: Final = 3.0  # for broker, workers and storage, checked concurrently
LATE_AFTER_PERIODS: Final = 3.0
LATE_AFTER_SECONDS: Final = 10.0  # while a worker starts, no sweep is late
LATE_AFTER_MISSED: Final = timedelta(minutes=10)  # for a sweep with a cron expression
OWNERS_SHOWN: Final = 10


@click.command()
@console.json_option
def status(as_json: bool) -> None:
    """Show the state of rows, queues, workers, sweeps and storage. Exit status 1 only if PostgreSQL is unavailable."""
    deps = boot.get_deps()
    names = sorted({*deps.providers, "direct"})
    overview = deps.database.run(lambda conn: read_overview(conn, names))
    calls = {
        "queues": inspect_cluster.read_queue_depths,
        "workers": inspect_cluster.ping_workers,
        "storage": lambda: _check_storage(deps),
    }
    answers = inspect_cluster.call_concurrently(calls, seconds=ANSWER_SECONDS)
    data = _build_data(deps, overview, answers)
    if as_json:
        console.print_json(data)
    else:
        console.print_parts(*_build_screen(data))


def _check_storage(deps: Deps) -> str:
    try:
        deps.storage.check_connection()
    except MoorageError as error:
        return f"unavailable: {error}"
    return "ok"


def _build_data(deps: Deps, overview: Overview, answers: dict[str, Any]) -> dict[str, Any]:
    return {
        "at": overview.read_at,
        "providers": [
            _provider_fields(deps, overview, name) for name in overview.last_webhooks if name in deps.providers
        ],
        "jobs": _count_by_state(overview.jobs),
        "deliveries": _count_by_state(overview.deliveries),
        "predictions": _count_by_state(overview.predictions),
        "outputs": _count_by_state(overview.outputs),
        "notifications": _count_by_state(overview.notifications),
        "oldest_due_seconds": overview.oldest_due_seconds,
        "soonest_expiry_seconds": overview.soonest_expiry_seconds,
        "broker": "unavailable" if answers.get("queues") is None else "ok",
        "queues": answers.get("queues"),
        "workers": answers.get("workers"),
        "leases": [_lease_fields(row, overview.read_at, deps.settings.lease_seconds) for row in overview.leases],
        "sweeps": _list_sweeps(overview, deps.settings),
        "dead_letters": [{**row, "value": int(row["value"])} for row in overview.dead_letters],
        "pauses": overview.pauses,
        "storage_use": overview.storage_use,
        "storage": answers.get("storage", f"unavailable: no answer within {ANSWER_SECONDS:g} s"),
    }


def _count_by_state(rows: list[Row]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["state"]] += int(row["value"])
    return dict(sorted(counts.items()))


def _provider_fields(deps: Deps, overview: Overview, name: str) -> dict[str, Any]:
    deliveries = {row["state"]: int(row["value"]) for row in overview.deliveries if row["provider"] == name}
    predictions = {row["state"]: int(row["value"]) for row in overview.predictions if row["provider"] == name}
    provider = deps.providers[name]
    return {
        "provider": name,
        "takes_webhooks": provider.is_enabled,
        "can_poll": provider.can_poll,
        "takes_orders": provider.can_submit,
        "planned": predictions.get("planned", 0),
        "at_work": overview.in_flight.get(name, 0),
        "at_once": provider.max_in_flight,
        "last_webhook_at": overview.last_webhooks[name],
        "new": deliveries.get("new", 0),
        "unmatched": deliveries.get("unmatched", 0),
    }


def _lease_fields(row: Row, now: datetime, lease_seconds: float) -> dict[str, Any]:
    renewed_seconds_ago = lease_seconds - (row["leased_until"] - now).total_seconds()
    return {**row, "renewed_seconds_ago": max(renewed_seconds_ago, 0.0)}


def _list_sweeps(overview: Overview, settings: Settings) -> list[dict[str, Any]]:
    """Return all sweeps. One with a cron expression that never ran is not late: it may not have been due yet."""
    ticks, now = {row["sweep"]: row for row in overview.ticks}, overview.read_at
    sweeps: list[dict[str, Any]] = []
    for name, seconds in schedule.sweep_periods(settings).items():
        last_at = ticks[name]["started_at"] if name in ticks else None
        allowed = max(LATE_AFTER_PERIODS * seconds, LATE_AFTER_SECONDS)
        is_late = last_at is None or (now - last_at).total_seconds() > allowed
        sweeps.append({"sweep": name, "period_seconds": seconds, "last_at": last_at, "is_late": is_late})
    for name, line in schedule.sweep_crontabs(settings).items():
        last_at = ticks[name]["started_at"] if name in ticks else None
        is_late = last_at is not None and now > schedule.next_run(line, last_at) + LATE_AFTER_MISSED
        cron = str(line).removeprefix("<crontab: ").partition(" (")[0]
        sweeps.append({"sweep": name, "cron": cron, "last_at": last_at, "is_late": is_late})
    for sweep in sweeps:
        sweep["result"] = ticks[sweep["sweep"]]["result"] if sweep["sweep"] in ticks else None
    return sweeps


def _build_screen(data: dict[str, Any]) -> list[Table | str]:
    return [
        *_pause_table(data),  # first: it explains why other rows wait
        _provider_table(data),
        _row_table(data),
        _queue_table(data),
        *_worker_table(data),
        _sweep_table(data),
        *_dead_letter_table(data),
        *_storage_use_table(data),
        f"storage  {data['storage']}",
    ]


def _provider_table(data: dict[str, Any]) -> Table:
    rows = [
        (
            p["provider"],
            "signed" if p["takes_webhooks"] else "no secret",
            "polled" if p["can_poll"] else "no token",
            format_age(p["last_webhook_at"], data["at"]),
            p["new"],
            p["unmatched"],
            f"{p['at_work']} of {p['at_once']}" if p["takes_orders"] else "disabled",
            p["planned"],
        )
        for p in data["providers"]
    ]
    columns = ("provider", "webhooks", "status", "last webhook", "new", "unmatched", "in flight", "planned")
    return console.build_table("Providers", columns, rows)


def _pause_table(data: dict[str, Any]) -> list[Table | str]:
    if not data["pauses"]:
        return []
    rows = [
        (
            pause["target"],
            f"{format_age(pause['paused_at'], data['at'])} by {pause['paused_by']}",
            pause["reason"],
            f"{pause['outputs']} outputs, {pause['predictions']} predictions",
            format_age(pause["expires_at"], data["at"]) if pause["expires_at"] else "none",
        )
        for pause in data["pauses"]
    ]
    columns = ("target", "since", "reason", "waiting", "soonest expiry")
    return [console.build_table("Paused (moorage resume)", columns, rows)]


def _row_table(data: dict[str, Any]) -> Table:
    due, expiry = data["oldest_due_seconds"], data["soonest_expiry_seconds"]
    text = None
    if expiry is not None:
        age = format_duration(abs(expiry))
        text = f"soonest expiry in {age}" if expiry > 0 else f"expired {age} ago"
    rows = [
        (
            name,
            ", ".join(f"{count} {state}" for state, count in data[name].items()) or "none",
            f"{format_duration(due[name])} ago" if due.get(name, 0) > 0 else "none",
            text if name == "outputs" else None,
        )
        for name in ("deliveries", "jobs", "predictions", "outputs", "notifications")
    ]
    return console.build_table("Live rows", ("table", "states", "oldest due", ""), rows)


def _queue_table(data: dict[str, Any]) -> Table:
    rows = [("broker", "unavailable")] if data["queues"] is None else list(data["queues"].items())
    return console.build_table("Queues", ("queue", "messages"), rows)


def _worker_table(data: dict[str, Any]) -> list[Table | str]:
    names = data["workers"]
    if names is None:
        line = "workers  unknown: the broker is unavailable"
    else:
        line = f"workers  {', '.join(names)}" if names else "workers  none answers: start one with moorage worker"
    if not data["leases"]:
        return [line, ""]
    rows = [
        (
            lease["leased_by"],
            f"{lease['subject']} {lease['id']}",
            lease["attempt"],
            f"renewed {format_duration(lease['renewed_seconds_ago'])} ago",
            "late" if lease["is_over"] else f"until {format_age(lease['leased_until'], data['at'])}",
        )
        for lease in data["leases"]
    ]
    return [line, console.build_table("Leases", ("worker/task", "row", "attempt", "lease", ""), rows)]


def _sweep_table(data: dict[str, Any]) -> Table:
    rows = [
        (
            s["sweep"],
            f"every {format_duration(s['period_seconds'])}" if "period_seconds" in s else f"at {s['cron']}",
            format_age(s["last_at"], data["at"]),
            "late" if s["is_late"] else "ok",
        )
        for s in data["sweeps"]
    ]
    return console.build_table("Sweeps", ("sweep", "period", "last tick", ""), rows)


def _dead_letter_table(data: dict[str, Any]) -> list[Table | str]:
    if not data["dead_letters"]:
        return ["dead letters  none open"]
    rows = [(d["provider"], d["step"], d["category"], d["value"]) for d in data["dead_letters"]]
    title = "Open dead letters (moorage dead list)"
    return [console.build_table(title, ("provider", "step", "category", "count"), rows)]


def _storage_use_table(data: dict[str, Any]) -> list[Table | str]:
    largest = data["storage_use"][:OWNERS_SHOWN]
    if not largest:
        return []
    rows = [(use["bucket"], use["owner"], use["objects"], f"{use['bytes']:,}") for use in largest]
    title = f"Storage used, counted {format_age(largest[0]['computed_at'], data['at'])}"
    return [console.build_table(title, ("bucket", "owner", "objects", "bytes"), rows)]
