"""`moorage doctor`: check settings and servers, with advice for each problem."""

import importlib
from collections.abc import Iterator
from datetime import datetime
from typing import Final

import click

from cli import console
from cli.commands.doctor import broker_checks, checks, storage_checks
from cli.commands.doctor.background_check import BackgroundCheck
from cli.commands.doctor.checks import CheckResult, fail, ok, warn
from cli.console import format_age
from db import ticks
from db.connection import Connection, Row, current_time
from moorage import settings as settings_module
from moorage.errors import ConfigError, MoorageError
from moorage.settings import Settings
from worker import boot, schedule, status

LATE_SECONDS: Final = 30.0
PROCESSES_SECONDS: Final = 8.0  # collecting the status takes three
# Problems of `moorage status` that a process causes which is missing, frozen or too busy.
WORK: Final = {"workers_silent", "queue_without_worker", "worker_silent", "lease_late", "overdue", "keep_stalled"}


@click.command()
@console.json_option
def doctor(as_json: bool) -> None:
    """Check settings and servers, with advice for each problem. Exit status 1 if a check fails."""
    results, pending = [], _run_checks()
    while True:
        with console.Progress("checking settings and servers ..."):
            result = next(pending, None)
        if result is None:
            break
        results.append(result)
        if not as_json:
            _print_result(result)
    if as_json:
        console.print_json(results)
    if any(result.level == "fail" for result in results):
        raise SystemExit(1)


def _print_result(result: CheckResult) -> None:
    advice = f"  ({result.advice})" if result.advice else ""
    text = console.escape_control_chars(f"{result.what}{advice}")
    click.echo("\n".join(console.wrap_text(text, f"{result.level:<5} ")))


def _run_checks() -> Iterator[CheckResult]:
    try:
        settings = settings_module.get_settings()
    except ConfigError as error:
        yield from (fail(line, "correct it; see .env.example") for line in str(error).splitlines())
        return
    yield ok("settings can be read")
    importlib.import_module("worker.celery")  # takes a part of the time for answers otherwise
    # All at once, so that several silent servers cost no more time than one.
    postgres = BackgroundCheck("PostgreSQL", checks.check_postgres, settings)
    broker = BackgroundCheck("the broker", broker_checks.check_broker, settings)
    storage = BackgroundCheck("storage", storage_checks.check_buckets, settings)
    replicate = BackgroundCheck("Replicate", checks.check_replicate_token, settings)
    processes = BackgroundCheck("workers and beat", _check_processes, settings, PROCESSES_SECONDS)
    yield from postgres.list_results()
    yield from broker.list_results()
    yield from storage.list_results()
    yield from checks.check_provider_settings(settings)
    yield from replicate.list_results()
    yield from checks.check_public_url(settings)
    if not (postgres.has_failed or broker.has_failed):
        yield from processes.list_results()


def _check_processes(settings: Settings) -> Iterator[CheckResult]:
    """Check that every queue has a worker that answers and works, and beat runs. Requires PostgreSQL and the broker."""
    deps = boot.get_deps()
    data = status.collect_status(deps, deps.database)
    if data["workers"]:
        yield ok(f"workers: {', '.join(data['workers'])}")
    yield from (fail(x.text, f"{x.remedy}; docs/runbook.md#{x.runbook}") for x in data["problems"] if x.code in WORK)
    try:
        yield from deps.database.run(lambda conn: _check_beat(conn, set(schedule.sweep_periods(settings))))
    except MoorageError as error:
        yield fail(f"beat: {error}", "see above")


def _check_beat(conn: Connection, sweeps: set[str]) -> list[CheckResult]:
    last = [row for row in ticks.list_latest(conn) if row["sweep"] in sweeps]
    newest: Row | None = max(last, key=lambda row: row["started_at"], default=None)
    now: datetime = current_time(conn)
    if newest is None or (now - newest["started_at"]).total_seconds() > LATE_SECONDS:
        age = format_age(newest["started_at"] if newest else None, now)
        return [fail(f"last tick of beat: {age}", "start one: moorage beat (and a worker for the queue sweeps)")]
    if missing := sorted(sweeps - {row["sweep"] for row in last}):
        return [warn(f"these sweeps never ran: {', '.join(missing)}", "check again in a minute")]
    return [ok(f"beat runs; last tick: {format_age(newest['started_at'], now)}")]
