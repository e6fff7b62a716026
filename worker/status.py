"""What `moorage status`, GET /v1/status and the console show: rows, servers, queues, workers, sweeps and problems."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

from celery.schedules import crontab

from db.connection import Database, Row
from db.reports.status import read_overview
from moorage.errors import MoorageError
from moorage.problems import find_problems
from moorage.settings import Settings
from tasks.step import Deps
from worker import inspect_cluster, queues, schedule

ANSWER_SECONDS: Final = 3.0  # for the servers and the workers, all at once
LATE_AFTER_PERIODS: Final = 3.0
LATE_AFTER_SECONDS: Final = 10.0  # while a worker starts, no sweep is late
FAILED_AFTER_PERIODS: Final = 60.0  # only the last hundred slots are kept
LATE_AFTER_MISSED: Final = timedelta(minutes=10)  # for a sweep with a cron expression
TABLES: Final = ("deliveries", "jobs", "predictions", "outputs", "notifications")
COPIED: Final = (
    "locked", "lock_holders", "oldest_due_seconds", "soonest_expiry_seconds", "keep_stalled_seconds",
    "storage_failing_seconds", "erasure_open_seconds", "webhooks_refused", "failing", "dead_letters", "pauses",
    "breakers", "storage_use", "billing_refused",
)  # fmt: skip
_SILENT: Final = f"no answer within {ANSWER_SECONDS:g} s"


def collect_status(deps: Deps, database: Database) -> dict[str, Any]:
    """
    Return the facts and, as `problems`, what follows from them; within three seconds, whatever is silent.

    Without PostgreSQL only what the other servers say. `database`: of the caller alone; a silent server keeps it.
    """
    names = sorted({*deps.providers, "direct"})
    calls: dict[str, Callable[[], Any]] = {
        "overview": lambda: _call(lambda: database.run(lambda conn: read_overview(conn, names))),
        "storage": lambda: _call(deps.storage.check_connection),
        "queues": inspect_cluster.read_queue_depths,
        "refusal": lambda: inspect_cluster.find_refusal(deps.settings.broker_url.get_secret_value()),
        "consumers": inspect_cluster.list_consumers,
        "pools": inspect_cluster.read_pool_sizes,
    }
    answers = inspect_cluster.call_concurrently(calls, seconds=ANSWER_SECONDS)
    overview = answers.get("overview", f"PostgreSQL: {_SILENT}")
    data = _build_server_data(answers)
    if isinstance(overview, dict):
        data |= {"postgresql": "ok", **_build_data(deps, overview)}
    else:
        data["postgresql"] = f"unavailable: {overview}"
    return {**data, "problems": find_problems(data)}


def _call(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MoorageError as error:
        return str(error)


def _build_server_data(answers: dict[str, Any]) -> dict[str, Any]:
    """Return what the servers other than PostgreSQL answered in time. Workers are unknown if the broker is."""
    depths = answers.get("queues", _SILENT)
    refusal = depths if isinstance(depths, str) else answers.get("refusal", _SILENT)
    consumers = answers.get("consumers", None if refusal else {})
    return {
        "broker": f"unavailable: {refusal}" if refusal else "ok",
        "queues": None if isinstance(depths, str) else depths,
        "workers": None if consumers is None else list(consumers),
        "worker_queues": consumers,
        "pools": answers.get("pools", {}),
        "consumers": None if consumers is None else inspect_cluster.count_consumers(consumers),
        "storage": f"unavailable: {silent}" if (silent := answers.get("storage", _SILENT)) else "ok",
    }


def _build_data(deps: Deps, overview: Row) -> dict[str, Any]:
    now, lease_seconds = overview["read_at"], deps.settings.lease_seconds
    return {
        "at": now,
        **{name: overview[name] for name in COPIED},
        "providers": [_provider_fields(deps, overview, x) for x in overview["last_webhooks"] if x in deps.providers],
        **{t: None if t in overview["locked"] else _count_by_state(overview[t]) for t in TABLES},
        "leases": [
            {**row, "renewed_seconds_ago": max(lease_seconds - (row["leased_until"] - now).total_seconds(), 0.0)}
            for row in overview["leases"]
        ],
        "sweeps": [] if "sweeps" in overview["locked"] else _list_sweeps(overview, deps.settings),
    }


def _count_by_state(rows: Iterable[Row]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["state"]] += int(row["value"])
    return dict(sorted(counts.items()))


def _provider_fields(deps: Deps, overview: Row, name: str) -> dict[str, Any]:
    deliveries = _count_by_state(row for row in overview["deliveries"] if row["provider"] == name)
    predictions = _count_by_state(row for row in overview["predictions"] if row["provider"] == name)
    ended = [row for row in overview["ended"] if row["provider"] == name]
    provider = deps.providers[name]
    return {
        "provider": name,
        "takes_webhooks": provider.is_enabled,
        "can_poll": provider.can_poll,
        "takes_orders": provider.can_submit,
        "planned": predictions.get("planned", 0),
        "at_work": overview["in_flight"].get(name, 0),
        "at_once": provider.max_in_flight,
        "last_webhook_at": overview["last_webhooks"][name],
        "ended_1h": {
            "total": sum(row["value"] for row in ended),
            "unsuccessful": sum(row["value"] for row in ended if row["state"] in ("failed", "lost")),
            **{by: sum(row["value"] for row in ended if row["ended_by"] == by) for by in ("webhook", "poll")},
        },
        **{
            state: None if "deliveries" in overview["locked"] else deliveries.get(state, 0)
            for state in ("new", "unmatched")
        },
    }


def _list_sweeps(overview: Row, settings: Settings) -> list[dict[str, Any]]:
    """
    Return all sweeps. One with a cron expression that never ran is not late: it may not have been due yet.

    One has failed if it has started and not finished for longer than it may run.
    """
    ticks, now = {row["sweep"]: row for row in overview["ticks"]}, overview["read_at"]
    sweeps: list[dict[str, Any]] = []
    times: dict[str, float | crontab] = {**schedule.sweep_periods(settings), **schedule.sweep_crontabs(settings)}
    for name, when in times.items():
        tick = ticks.get(name, {})
        last_at = tick.get("started_at")
        if isinstance(when, float):
            period: dict[str, Any] = {"period_seconds": when}
            next_at = (last_at or now) + timedelta(seconds=when)
            allowed = max(LATE_AFTER_PERIODS * when, LATE_AFTER_SECONDS)
            is_late = last_at is None or (now - last_at).total_seconds() > allowed
        else:
            period = {"cron": str(when).removeprefix("<crontab: ").partition(" (")[0]}
            next_at = schedule.next_run(when, last_at or now)
            is_late = last_at is not None and now > next_at + LATE_AFTER_MISSED
        since = tick.get("unfinished_since")
        limit = min(queues.SWEEP_SECONDS, FAILED_AFTER_PERIODS * schedule.slot_seconds(settings, name))
        period["is_failed"] = since is not None and (now - since).total_seconds() > limit
        result = {"finished_at": tick.get("finished_at"), "result": tick.get("result")}
        sweeps.append({"sweep": name, **period, "last_at": last_at, "is_late": is_late, "next_at": next_at, **result})
    return sweeps
