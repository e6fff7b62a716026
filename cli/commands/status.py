"""`moorage status`: rows, queues, workers, sweeps, dead letters and storage on one screen."""

import contextlib
import importlib
import time
from collections.abc import Collection
from typing import Any, Final

import click
from rich.table import Table

from cli import console
from cli.console import format_age, format_duration
from moorage.errors import DatabaseUnavailable
from tasks.step import Deps
from worker import boot
from worker.status import TABLES, collect_status

OWNERS_SHOWN: Final = 10
WATCH_SECONDS: Final = 2.0


@click.command()
@click.option("--check", is_flag=True, help="Print the verdict only; exit status 1 if there is a problem.")
@click.option("--watch", is_flag=True, help=f"Show it again every {WATCH_SECONDS:g} s until Ctrl-C.")
@console.json_option
def status(check: bool, watch: bool, as_json: bool) -> None:
    """
    Show a verdict, then the state of rows, queues, workers, sweeps and storage.

    Exit status 1 if PostgreSQL is unavailable, with --check if there is any problem.
    """
    if watch and (check or as_json):
        raise click.UsageError("--watch is for a person: leave out --check and --json")
    deps = boot.get_deps()
    importlib.import_module("worker.celery")  # takes a part of the three seconds otherwise
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(deps)
        return
    data = collect_status(deps, deps.database)
    if as_json:
        console.print_json(data)
    else:
        console.print_parts(*(_format_verdict(data) if check else _build_screen(deps, data)))
    if data["postgresql"] != "ok":
        raise DatabaseUnavailable(data["postgresql"].removeprefix("unavailable: "))
    if check and data["problems"]:
        raise SystemExit(1)


def _watch(deps: Deps) -> None:
    while True:
        console.print_screen(*_build_screen(deps, collect_status(deps, deps.database)))
        time.sleep(WATCH_SECONDS)


def _format_verdict(data: dict[str, Any]) -> list[Table | str]:
    problems = data["problems"]
    if not problems:
        return ["All clear"]
    lines = [f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"]
    for problem in problems:
        lines += console.wrap_text(f"{problem.severity}: {problem.text}")
        lines += console.wrap_text(f"{problem.remedy} (docs/runbook.md#{problem.runbook})", "    ")
    return [*lines]


def _build_screen(deps: Deps, data: dict[str, Any]) -> list[Table | str]:
    verdict = [*_format_verdict(data), ""]
    if data["postgresql"] != "ok":
        return [*verdict, *_queue_table(data), *_worker_lines(data), f"storage  {data['storage']}"]
    return [
        *verdict,
        *_lock_table(data),  # these explain why rows wait or are not shown
        *_locked_line(data),
        *_pause_table(data),
        *_breaker_table(data),
        _provider_table(data, deps.settings.allow_unsigned),
        _row_table(data),
        *_queue_table(data),
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


def _breaker_table(data: dict[str, Any]) -> list[Table | str]:
    columns: console.RecordColumns = {
        "target": "target",
        "since": lambda breaker: format_age(breaker["opened_at"], data["at"]),
        "reason": "reason",
    }
    rows = data["breakers"]
    return [console.build_record_table("Open circuit breakers", columns, rows)] if rows else []


def _provider_table(data: dict[str, Any], unsigned: Collection[str]) -> Table:
    def describe_webhooks(provider: dict[str, Any]) -> str:
        if provider["provider"] in unsigned:
            return "unsigned"
        return "signed" if provider["takes_webhooks"] else "no secret"

    columns: console.RecordColumns = {
        "provider": "provider",
        "webhooks": describe_webhooks,
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


def _queue_table(data: dict[str, Any]) -> list[Table | str]:
    depths, consumers = data["queues"] or {}, data["consumers"] or {}
    rows = [(queue, depths[queue], consumers.get(queue)) for queue in depths]
    table = [console.build_table("Queues", ("queue", "messages", "workers"), rows)] if rows else []
    return [*table, *([] if data["broker"] == "ok" else [f"broker  {data['broker']}", ""])]


def _worker_lines(data: dict[str, Any]) -> list[Table | str]:
    names = data["workers"]
    if names is None:
        return ["workers  unknown: the broker is unavailable", ""]
    return [f"workers  {', '.join(names) or 'none answered in 3 s: start one with moorage worker'}", ""]


def _worker_table(data: dict[str, Any]) -> list[Table | str]:
    if not data["leases"]:
        return _worker_lines(data)
    columns: console.RecordColumns = {
        "worker": lambda lease: lease["leased_by"].partition("/")[0],
        "row": lambda lease: f"{lease['subject']} {console.shorten_id(lease['id'])}",
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
