"""`moorage status`: on one screen what lives, what waits and what is broken."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import click
from celery.schedules import crontab
from rich.table import Table

from cli import console
from cli.console import format_age, format_duration
from db.connection import Row
from db.reports import status as overview
from db.reports.status import Overview
from moorage.errors import MoorageError
from tasks.step import Deps
from worker import boot, inspect_cluster, schedule

ANSWER_SECONDS: Final = 3.0  # for broker, workers and storage, asked at once
LATE_AFTER_PERIODS: Final = 3.0
LATE_AFTER_SECONDS: Final = 10.0  # a worker that is starting is not late
LATE_AFTER_MISSED: Final = timedelta(minutes=10)  # a sweep with a cron line
OWNERS_SHOWN: Final = 10


@click.command()
@console.json_option
def status(as_json: bool) -> None:
    """Show what lives, what waits and what is broken. Exit status 1 only when PostgreSQL is away."""
    deps = boot.get_deps()
    names = sorted({*deps.providers, "direct"})
    seen = deps.database.run(lambda conn: overview.read_overview(conn, names))
    asks = {
        "queues": inspect_cluster.read_queue_depths,
        "workers": inspect_cluster.ping_workers,
        "storage": lambda: _storage(deps),
    }
    answers = inspect_cluster.call_concurrently(asks, seconds=ANSWER_SECONDS)
    found = _gather(deps, seen, answers)
    if as_json:
        console.print_json(found)
    else:
        console.print_parts(*_screen(found))


def _storage(deps: Deps) -> str:
    try:
        deps.storage.check_connection()
    except MoorageError as error:
        return f"away: {error}"
    return "ok"


def _gather(deps: Deps, seen: Overview, answers: dict[str, Any]) -> dict[str, Any]:
    """Return all that is shown, as plain values: the shape of --json."""
    return {
        "at": seen.read_at,
        "providers": [_provider(deps, seen, name) for name in seen.last_webhooks if name in deps.providers],
        "jobs": _by_state(seen.jobs),
        "deliveries": _by_state(seen.deliveries),
        "predictions": _by_state(seen.predictions),
        "outputs": _by_state(seen.outputs),
        "notifications": _by_state(seen.notifications),
        "oldest_due_seconds": seen.oldest_due_seconds,
        "soonest_expiry_seconds": seen.soonest_expiry_seconds,
        "broker": "away" if answers.get("queues") is None else "ok",
        "queues": answers.get("queues"),
        "workers": answers.get("workers"),
        "leases": [_lease(row, seen.read_at, deps.settings.lease_seconds) for row in seen.leases],
        "sweeps": _sweeps(seen, schedule.sweep_periods(deps.settings))
        + _nightly(seen, schedule.sweep_crontabs(deps.settings)),
        "dead_letters": [{**row, "value": int(row["value"])} for row in seen.dead_letters],
        "pauses": seen.pauses,
        "storage_use": seen.storage_use,
        "storage": answers.get("storage", f"away: no answer within {ANSWER_SECONDS:g} s"),
    }


def _by_state(rows: list[Row]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for row in rows:
        counted[row["state"]] += int(row["value"])
    return dict(sorted(counted.items()))


def _provider(deps: Deps, seen: Overview, name: str) -> dict[str, Any]:
    live = {row["state"]: int(row["value"]) for row in seen.deliveries if row["provider"] == name}
    runs = {row["state"]: int(row["value"]) for row in seen.predictions if row["provider"] == name}
    provider = deps.providers[name]
    return {
        "provider": name,
        "takes_webhooks": provider.is_enabled,
        "can_poll": provider.can_poll,
        "takes_orders": provider.can_submit,
        "planned": runs.get("planned", 0),
        "at_work": seen.in_flight.get(name, 0),
        "at_once": provider.max_in_flight,
        "last_webhook_at": seen.last_webhooks[name],
        "new": live.get("new", 0),
        "unmatched": live.get("unmatched", 0),
    }


def _lease(row: Row, at: datetime, lease_seconds: float) -> dict[str, Any]:
    renewed_seconds_ago = lease_seconds - (row["leased_until"] - at).total_seconds()
    return {**row, "renewed_seconds_ago": max(renewed_seconds_ago, 0.0)}


def _sweeps(seen: Overview, periods: Any) -> list[dict[str, Any]]:
    last = {row["sweep"]: row for row in seen.ticks}
    return [_sweep(name, seconds, last.get(name), seen.read_at) for name, seconds in periods.items()]


def _sweep(name: str, period_seconds: float, row: Row | None, at: datetime) -> dict[str, Any]:
    started = row["started_at"] if row else None
    allowed = max(LATE_AFTER_PERIODS * period_seconds, LATE_AFTER_SECONDS)
    return {
        "sweep": name,
        "period_seconds": period_seconds,
        "last_at": started,
        "is_late": started is None or (at - started).total_seconds() > allowed,
        "result": row["result"] if row else None,
    }


def _nightly(seen: Overview, crons: Mapping[str, crontab]) -> list[dict[str, Any]]:
    """Return the sweeps with a cron line; one that never ran is not late: its time may not have come yet."""
    last = {row["sweep"]: row for row in seen.ticks}
    return [_at_times(name, line, last.get(name), seen.read_at) for name, line in crons.items()]


def _at_times(name: str, line: crontab, row: Row | None, at: datetime) -> dict[str, Any]:
    is_late = row is not None and at > schedule.next_run(line, row["started_at"]) + LATE_AFTER_MISSED
    return {
        "sweep": name,
        "cron": str(line).removeprefix("<crontab: ").partition(" (")[0],
        "last_at": row["started_at"] if row else None,
        "is_late": is_late,
        "result": row["result"] if row else None,
    }


def _screen(found: dict[str, Any]) -> list[Table | str]:
    return [
        *_pauses(found),
        _providers(found),
        _live(found),
        _queues(found),
        *_workers(found),
        _ticks(found),
        *_dead_letters(found),
        *_storage_use(found),
        f"storage  {found['storage']}",
    ]


def _providers(found: dict[str, Any]) -> Table:
    rows = [
        (
            p["provider"],
            "signed" if p["takes_webhooks"] else "no secret",
            "polled" if p["can_poll"] else "no token",
            format_age(p["last_webhook_at"], found["at"]),
            p["new"],
            p["unmatched"],
            f"{p['at_work']} of {p['at_once']}" if p["takes_orders"] else "none taken",
            p["planned"],
        )
        for p in found["providers"]
    ]
    columns = ("provider", "webhooks", "status", "last webhook", "new", "unmatched", "orders at work", "planned")
    return console.build_table("Providers", columns, rows)


def _pauses(found: dict[str, Any]) -> list[Table | str]:
    """Tell what is paused, first of all: whoever looks for a reason why nothing moves should see it."""
    if not found["pauses"]:
        return []
    rows = [
        (
            pause["target"],
            f"{format_age(pause['paused_at'], found['at'])} by {pause['paused_by']}",
            pause["reason"],
            f"{pause['outputs']} outputs, {pause['predictions']} predictions",
            format_age(pause["expires_at"], found["at"]) if pause["expires_at"] else "none",
        )
        for pause in found["pauses"]
    ]
    columns = ("what", "since", "reason", "waiting", "soonest expiry")
    return [console.build_table("Paused (moorage resume)", columns, rows)]


def _live(found: dict[str, Any]) -> Table:
    due, expiry = found["oldest_due_seconds"], found["soonest_expiry_seconds"]
    ends = None
    if expiry is not None:
        ends = (
            f"soonest expiry in {format_duration(expiry)}" if expiry > 0 else f"expired {format_duration(-expiry)} ago"
        )
    rows = [
        (
            name,
            ", ".join(f"{count} {state}" for state, count in found[name].items()) or "none",
            f"{format_duration(due[name])} ago" if due.get(name, 0) > 0 else "none",
            ends if name == "outputs" else None,
        )
        for name in ("deliveries", "jobs", "predictions", "outputs", "notifications")
    ]
    return console.build_table("Live rows", ("table", "states", "oldest due", ""), rows)


def _queues(found: dict[str, Any]) -> Table:
    rows = [("broker", "away")] if found["queues"] is None else list(found["queues"].items())
    return console.build_table("Queues", ("queue", "messages"), rows)


def _workers(found: dict[str, Any]) -> list[Table | str]:
    names = found["workers"]
    if names is None:
        told = "workers  unknown: the broker is away"
    else:
        told = f"workers  {', '.join(names)}" if names else "workers  none answers: start one with moorage worker"
    if not found["leases"]:
        return [told, ""]
    rows = [
        (
            lease["leased_by"],
            f"{lease['subject']} {lease['id']}",
            lease["attempt"],
            f"renewed {format_duration(lease['renewed_seconds_ago'])} ago",
            "late" if lease["is_over"] else f"until {format_age(lease['leased_until'], found['at'])}",
        )
        for lease in found["leases"]
    ]
    return [told, console.build_table("What they hold", ("worker/task", "row", "attempt", "lease", ""), rows)]


def _ticks(found: dict[str, Any]) -> Table:
    rows = [
        (
            s["sweep"],
            f"every {format_duration(s['period_seconds'])}" if "period_seconds" in s else f"at {s['cron']}",
            format_age(s["last_at"], found["at"]),
            "late" if s["is_late"] else "ok",
        )
        for s in found["sweeps"]
    ]
    return console.build_table("Sweeps", ("sweep", "period", "last tick", ""), rows)


def _dead_letters(found: dict[str, Any]) -> list[Table | str]:
    if not found["dead_letters"]:
        return ["dead letters  none open"]
    rows = [(d["provider"], d["step"], d["category"], d["value"]) for d in found["dead_letters"]]
    title = "Open dead letters (moorage dead list)"
    return [console.build_table(title, ("provider", "step", "category", "count"), rows)]


def _storage_use(found: dict[str, Any]) -> list[Table | str]:
    """Tell who uses most of the storage, as last counted."""
    most = found["storage_use"][:OWNERS_SHOWN]
    if not most:
        return []
    rows = [(use["bucket"], use["owner"], use["objects"], f"{use['bytes']:,}") for use in most]
    title = f"Storage used, counted {format_age(most[0]['computed_at'], found['at'])}"
    return [console.build_table(title, ("bucket", "owner", "objects", "bytes"), rows)]
