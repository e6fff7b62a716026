"""`moorage status`: rows, queues, workers, sweeps, dead letters and storage on one screen."""

import contextlib
import importlib
import time
from collections.abc import Collection, Iterator
from typing import Any, Final

import click

from cli import console
from cli.console import Part, build_tables, format_age, format_duration
from db.connection import Row
from moorage.errors import DatabaseUnavailable
from tasks.step import Deps
from worker import boot
from worker.status import TABLES, collect_status

OWNERS_SHOWN: Final = 10
WATCH_SECONDS: Final = 2.0


@click.command()
@click.option("--check", is_flag=True, help="Print the verdict only; exit status 1 if there is a problem.")
@click.option("--watch", is_flag=True, help=f"Show it again every {WATCH_SECONDS:g} s until Ctrl-C.")
@console.json_flag
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
            while True:
                console.print_screen(*_build_screen(deps, collect_status(deps, deps.database)))
                time.sleep(WATCH_SECONDS)
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


def _format_verdict(data: dict[str, Any]) -> Iterator[Part]:
    if not data["problems"]:
        yield "All clear"
        return
    yield f"{len(data['problems'])} problem{'' if len(data['problems']) == 1 else 's'}"
    for problem in data["problems"]:
        yield from console.wrap_text(f"{problem.severity}: {problem.text}")
        yield from console.wrap_text(f"{problem.remedy} (docs/runbook.md#{problem.runbook})", "    ")


def _build_screen(deps: Deps, data: dict[str, Any]) -> Iterator[Part]:
    yield from _format_verdict(data)
    yield ""
    if data["postgresql"] == "ok":
        yield from _list_obstacles(data)
        yield from _list_rows(data, deps.settings.allow_unsigned)
    yield from _list_processes(data)
    if data["postgresql"] == "ok":
        yield from _list_totals(data)
    yield f"storage  {data['storage']}"


def _list_obstacles(data: dict[str, Any]) -> Iterator[Part]:
    """Yield what explains why rows wait or are not shown."""
    yield from build_tables(
        "Sessions that hold locks (docs/runbook.md)",
        data["lock_holders"],
        *("pid", ("application", "application_name"), ("user", "usename")),
        ("state", lambda holder: holder["state"] or "unknown: grant pg_monitor"),
        ("since", lambda holder: format_duration(holder["state_seconds"]) if holder["state"] else None),
        ("transaction", lambda holder: format_duration(holder["transaction_seconds"]) if holder["state"] else None),
        ("blocks", lambda holder: f"{holder['waiting']} sessions"),
    )
    yield from build_tables(
        "Paused (moorage resume)",
        data["pauses"],
        "target",
        ("since", lambda pause: f"{format_age(pause['paused_at'], data['at'])} by {pause['paused_by']}"),
        "reason",
        ("waiting", lambda pause: f"{pause['outputs']} outputs, {pause['predictions']} predictions"),
        ("soonest expiry", lambda x: format_age(x["expires_at"], data["at"]) if x["expires_at"] else "none"),
    )
    since = ("since", lambda breaker: format_age(breaker["opened_at"], data["at"]))
    yield from build_tables("Open circuit breakers", data["breakers"], "target", since, "reason")


def _list_rows(data: dict[str, Any], unsigned: Collection[str]) -> Iterator[Part]:
    yield from build_tables(
        "Providers",
        data["providers"],
        "provider",
        ("webhooks", lambda provider: _describe_webhooks(provider, unsigned)),
        ("status", lambda provider: "polled" if provider["can_poll"] else "no token"),
        (
            "last webhook",
            lambda x: "" if "last webhooks" in data["locked"] else format_age(x["last_webhook_at"], data["at"]),
        ),
        *("new", "unmatched"),
        ("in flight", lambda x: f"{x['at_work']} of {x['at_once']}" if x["takes_orders"] else "disabled"),
        "planned",
    )
    expiry, text = data["soonest_expiry_seconds"], None
    if expiry is not None:
        age = format_duration(abs(expiry))
        text = f"soonest expiry in {age}" if expiry > 0 else f"expired {age} ago"
    yield from build_tables(
        "Live rows",
        TABLES,
        ("table", str),
        ("states", lambda name: _format_states(data[name])),
        ("oldest due", lambda name: _format_due(data["oldest_due_seconds"].get(name))),
        ("", lambda name: text if name == "outputs" else None),
    )


def _describe_webhooks(provider: Row, unsigned: Collection[str]) -> str:
    if provider["provider"] in unsigned:
        return "unsigned"
    return "signed" if provider["takes_webhooks"] else "no secret"


def _format_states(counts: dict[str, int] | None) -> str:
    if counts is None:
        return "locked"
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"


def _format_due(seconds: float | None) -> str:
    if seconds is None:
        return "locked"
    return f"{format_duration(seconds)} ago" if seconds > 0 else "none"


def _list_processes(data: dict[str, Any]) -> Iterator[Part]:
    consumers, queues = data["consumers"] or {}, (data["queues"] or {}).items()
    yield from build_tables(
        "Queues", queues, ("queue", 0), ("messages", 1), ("workers", lambda queue: consumers.get(queue[0]))
    )
    if data["broker"] != "ok":
        yield f"broker  {data['broker']}"
        yield ""
    names = "unknown: the broker is unavailable"
    if data["workers"] is not None:
        names = ", ".join(data["workers"]) or "none answered in 3 s: start one with moorage worker"
    yield f"workers  {names}"
    leases = build_tables(
        "Leases",
        data.get("leases") or (),
        ("worker", lambda lease: lease["leased_by"].partition("/")[0]),
        ("row", lambda lease: f"{lease['subject']} {console.shorten_id(lease['id'])}"),
        "attempt",
        ("lease", lambda lease: f"renewed {format_duration(lease['renewed_seconds_ago'])} ago"),
        ("", lambda lease: "late" if lease["is_over"] else f"until {format_age(lease['leased_until'], data['at'])}"),
    )
    yield from leases or [""]


def _list_totals(data: dict[str, Any]) -> Iterator[Part]:
    yield from build_tables(
        "Sweeps",
        data["sweeps"],
        "sweep",
        ("period", lambda s: f"at {s['cron']}" if "cron" in s else f"every {format_duration(s['period_seconds'])}"),
        ("last tick", lambda sweep: format_age(sweep["last_at"], data["at"])),
        ("", lambda sweep: "late" if sweep["is_late"] else "fails" if sweep["is_failed"] else "ok"),
    )
    letters, title = data["dead_letters"], "Open dead letters (moorage dead list)"
    yield from build_tables(title, letters, "provider", "step", "category", ("count", "value"))
    if not letters:
        yield f"dead letters  {'locked' if 'dead letters' in data['locked'] else 'none open'}"
    if use := data["storage_use"][:OWNERS_SHOWN]:
        title = f"Storage used, counted {format_age(use[0]['computed_at'], data['at'])}"
        yield from build_tables(title, use, "bucket", "owner", "objects", ("bytes", lambda row: f"{row['bytes']:,}"))
