"""`moorage status`: rows, queues, workers, sweeps, dead letters and storage on one screen."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

import click
from rich.table import Table

from cli import console
from cli.console import format_age, format_duration
from db.connection import Row
from db.reports.status import Overview, read_overview
from moorage.errors import DatabaseUnavailable, MoorageError
from moorage.settings import Settings
from tasks.step import Deps
from worker import boot, inspect_cluster, schedule

ANSWER_SECONDS: Final = 3.0  # for broker, workers and storage, checked concurrently
LATE_AFTER_PERIODS: Final = 3.0
LATE_AFTER_SECONDS: Final = 10.0  # while a worker starts, no sweep is late
LATE_AFTER_MISSED: Final = timedelta(minutes=10)  # for a sweep with a cron expression
OWNERS_SHOWN: Final = 10
TABLES: Final = ("deliveries", "jobs", "predictions", "outputs", "notifications")


@click.command()
@console.json_option
def status(as_json: bool) -> None:
    """Show the state of rows, queues, workers, sweeps and storage. Exit status 1 only if PostgreSQL is unavailable."""
    deps = boot.get_deps()
    calls: dict[str, Callable[[], Any]] = {
        "overview": lambda: _read_overview(deps),
        "storage": lambda: _check_storage(deps),
        "queues": inspect_cluster.read_queue_depths,
        "consumers": inspect_cluster.list_consumers,
    }
    answers = inspect_cluster.call_concurrently(calls, seconds=ANSWER_SECONDS)
    overview = answers.get("overview", f"PostgreSQL: no answer within {ANSWER_SECONDS:g} s")
    data = _build_server_data(answers)
    if isinstance(overview, Overview):
        data |= _build_data(deps, overview)
    else:
        data["postgresql"] = f"unavailable: {overview}"
    if as_json:
        console.print_json(data)
    elif isinstance(overview, Overview):
        console.print_parts(*_build_screen(data))
    else:
        console.print_parts(_queue_table(data), *_worker_lines(data), f"storage  {data['storage']}")
    if not isinstance(overview, Overview):
        raise DatabaseUnavailable(overview)


def _read_overview(deps: Deps) -> Overview | str:
    try:
        return deps.database.run(lambda conn: read_overview(conn, sorted({*deps.providers, "direct"})))
    except MoorageError as error:
        return str(error)


def _check_storage(deps: Deps) -> str:
    try:
        deps.storage.check_connection()
    except MoorageError as error:
        return f"unavailable: {error}"
    return "ok"


def _build_server_data(answers: dict[str, Any]) -> dict[str, Any]:
    """Return what the servers other than PostgreSQL answered in time."""
    consumers = answers.get("consumers")
    return {
        "broker": "unavailable" if answers.get("queues") is None else "ok",
        "queues": answers.get("queues"),
        "workers": None if consumers is None else list(consumers),
        "consumers": None if consumers is None else inspect_cluster.count_consumers(consumers),
        "storage": answers.get("storage", f"unavailable: no answer within {ANSWER_SECONDS:g} s"),
    }


def _build_data(deps: Deps, overview: Overview) -> dict[str, Any]:
    now, lease_seconds = overview.read_at, deps.settings.lease_seconds
    return {
        "at": now,
        "postgresql": "ok",
        "locked": overview.locked,
        "lock_holders": overview.lock_holders,
        "providers": [_provider_fields(deps, overview, x) for x in overview.last_webhooks if x in deps.providers],
        **{t: None if t in overview.locked else _count_by_state(getattr(overview, t)) for t in TABLES},
        "oldest_due_seconds": overview.oldest_due_seconds,
        "soonest_expiry_seconds": overview.soonest_expiry_seconds,
        "leases": [
            {**row, "renewed_seconds_ago": max(lease_seconds - (row["leased_until"] - now).total_seconds(), 0.0)}
            for row in overview.leases
        ],
        "sweeps": [] if "sweeps" in overview.locked else _list_sweeps(overview, deps.settings),
        "dead_letters": [{**row, "value": int(row["value"])} for row in overview.dead_letters],
        "pauses": overview.pauses,
        "storage_use": overview.storage_use,
    }


def _count_by_state(rows: Iterable[Row]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["state"]] += int(row["value"])
    return dict(sorted(counts.items()))


def _provider_fields(deps: Deps, overview: Overview, name: str) -> dict[str, Any]:
    deliveries = _count_by_state(row for row in overview.deliveries if row["provider"] == name)
    predictions = _count_by_state(row for row in overview.predictions if row["provider"] == name)
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
        **{
            state: None if "deliveries" in overview.locked else deliveries.get(state, 0)
            for state in ("new", "unmatched")
        },
    }


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
        *_lock_table(data),  # first, as the next two: they explain why rows wait or are not shown
        *_locked_line(data),
        *_pause_table(data),
        _provider_table(data),
        _row_table(data),
        _queue_table(data),
        *_worker_table(data),
        _sweep_table(data),
        *_dead_letter_table(data),
        *_storage_use_table(data),
        f"storage  {data['storage']}",
    ]


def _locked_line(data: dict[str, Any]) -> list[Table | str]:
    if not data["locked"]:
        return []
    return [
        f"locked by another transaction, not shown: {', '.join(data['locked'])} (docs/runbook.md)",
        "",
    ]


def _provider_table(data: dict[str, Any]) -> Table:
    columns: console.RecordColumns = {
        "provider": "provider",
        "webhooks": lambda p: "signed" if p["takes_webhooks"] else "no secret",
        "status": lambda p: "polled" if p["can_poll"] else "no token",
        "last webhook": lambda p: (
            "" if "last webhooks" in data["locked"] else format_age(p["last_webhook_at"], data["at"])
        ),
        "new": "new",
        "unmatched": "unmatched",
        "in flight": lambda p: f"{p['at_work']} of {p['at_once']}" if p["takes_orders"] else "disabled",
        "planned": "planned",
    }
    return console.build_record_table("Providers", columns, data["providers"])


def _pause_table(data: dict[str, Any]) -> list[Table | str]:
    columns: console.RecordColumns = {
        "target": "target",
        "since": lambda pause: f"{format_age(pause['paused_at'], data['at'])} by {pause['paused_by']}",
        "reason": "reason",
        "waiting": lambda pause: f"{pause['outputs']} outputs, {pause['predictions']} predictions",
        "soonest expiry": lambda pause: format_age(pause["expires_at"], data["at"]) if pause["expires_at"] else "none",
    }
    title = "Paused (moorage resume)"
    return [console.build_record_table(title, columns, data["pauses"])] if data["pauses"] else []


def _lock_table(data: dict[str, Any]) -> list[Table | str]:
    columns: console.RecordColumns = {
        "pid": "pid",
        "application": "application_name",
        "user": "usename",
        "state": lambda holder: holder["state"] or "unknown: grant pg_monitor",
        "since": lambda holder: format_duration(holder["state_seconds"]) if holder["state"] else None,
        "transaction": lambda holder: format_duration(holder["transaction_seconds"]) if holder["state"] else None,
        "blocks": lambda holder: f"{holder['waiting']} sessions",
    }
    title = "Sessions that hold locks (docs/runbook.md)"
    return [console.build_record_table(title, columns, data["lock_holders"])] if data["lock_holders"] else []


def _row_table(data: dict[str, Any]) -> Table:
    due, expiry, text = data["oldest_due_seconds"], data["soonest_expiry_seconds"], None
    if expiry is not None:
        age = format_duration(abs(expiry))
        text = f"soonest expiry in {age}" if expiry > 0 else f"expired {age} ago"
    columns: console.RecordColumns = {
        "table": lambda name: name,
        "states": lambda name: _format_states(data[name]),
        "oldest due": lambda name: _format_due(due.get(name)),
        "": lambda name: text if name == "outputs" else None,
    }
    return console.build_record_table("Live rows", columns, TABLES)


def _format_states(counts: dict[str, int] | None) -> str:
    if counts is None:
        return "locked"
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"


def _format_due(seconds: float | None) -> str:
    if seconds is None:
        return "locked"
    return f"{format_duration(seconds)} ago" if seconds > 0 else "none"


def _queue_table(data: dict[str, Any]) -> Table:
    depths, consumers = data["queues"], data["consumers"] or {}
    rows = [("broker", "unavailable", None)] if depths is None else [(q, depths[q], consumers.get(q)) for q in depths]
    return console.build_table("Queues", ("queue", "messages", "workers"), rows)


def _worker_lines(data: dict[str, Any]) -> list[Table | str]:
    names = data["workers"]
    if names is None:
        return ["workers  unknown: the broker is unavailable", ""]
    return [f"workers  {', '.join(names) or 'none answers: start one with moorage worker'}", ""]


def _worker_table(data: dict[str, Any]) -> list[Table | str]:
    if not data["leases"]:
        return _worker_lines(data)
    columns: console.RecordColumns = {
        "worker/task": "leased_by",
        "row": lambda lease: f"{lease['subject']} {lease['id']}",
        "attempt": "attempt",
        "lease": lambda lease: f"renewed {format_duration(lease['renewed_seconds_ago'])} ago",
        "": lambda lease: "late" if lease["is_over"] else f"until {format_age(lease['leased_until'], data['at'])}",
    }
    return [*_worker_lines(data)[:1], console.build_record_table("Leases", columns, data["leases"])]


def _sweep_table(data: dict[str, Any]) -> Table:
    columns: console.RecordColumns = {
        "sweep": "sweep",
        "period": lambda s: f"at {s['cron']}" if "cron" in s else f"every {format_duration(s['period_seconds'])}",
        "last tick": lambda s: format_age(s["last_at"], data["at"]),
        "": lambda s: "late" if s["is_late"] else "ok",
    }
    return console.build_record_table("Sweeps", columns, data["sweeps"])


def _dead_letter_table(data: dict[str, Any]) -> list[Table | str]:
    if not data["dead_letters"]:
        return [f"dead letters  {'locked' if 'dead letters' in data['locked'] else 'none open'}"]
    columns = {"provider": "provider", "step": "step", "category": "category", "count": "value"}
    return [console.build_record_table("Open dead letters (moorage dead list)", columns, data["dead_letters"])]


def _storage_use_table(data: dict[str, Any]) -> list[Table | str]:
    largest = data["storage_use"][:OWNERS_SHOWN]
    if not largest:
        return []
    columns: console.RecordColumns = {name: name for name in ("bucket", "owner", "objects")}
    columns = {**columns, "bytes": lambda use: f"{use['bytes']:,}"}
    title = f"Storage used, counted {format_age(largest[0]['computed_at'], data['at'])}"
    return [console.build_record_table(title, columns, largest)]
