"""`moorage doctor`: check settings and servers, with advice for each problem."""

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
from worker import boot

LATE_SECONDS: Final = 30.0


@click.command()
@console.json_option
def doctor(as_json: bool) -> None:
    """Check settings and servers, with advice for each problem. Exit status 1 if a check fails."""
    results = []
    for result in _run_checks():
        results.append(result)
        if not as_json:
            _print_result(result)
    if as_json:
        console.print_json(results)
    if any(result.level == "fail" for result in results):
        raise SystemExit(1)


def _print_result(result: CheckResult) -> None:
    advice = f"  ({result.advice})" if result.advice else ""
    click.echo(f"{result.level:<5} {console.escape_control_chars(result.what)}{console.escape_control_chars(advice)}")


def _run_checks() -> Iterator[CheckResult]:
    try:
        settings = settings_module.get_settings()
    except ConfigError as error:
        yield from (fail(line, "correct it; see .env.example") for line in str(error).splitlines())
        return
    yield ok("settings can be read")
    # All at once, so that several silent servers cost no more time than one.
    postgres = BackgroundCheck("PostgreSQL", checks.check_postgres, settings)
    broker = BackgroundCheck("the broker", broker_checks.check_broker, settings)
    storage = BackgroundCheck("storage", storage_checks.check_buckets, settings)
    replicate = BackgroundCheck("Replicate", checks.check_replicate_token, settings)
    processes = BackgroundCheck("workers and beat", _check_processes, settings)
    yield from postgres.list_results()
    yield from broker.list_results()
    yield from storage.list_results()
    yield from checks.check_provider_settings(settings)
    yield from replicate.list_results()
    yield from checks.check_public_url(settings)
    if not (postgres.has_failed or broker.has_failed):
        yield from processes.list_results()


def _check_processes(settings: Settings) -> Iterator[CheckResult]:
    """Check that a worker answers and beat runs. Requires PostgreSQL and the broker."""
    from worker import inspect_cluster, schedule  # the app reads the settings, which are valid by now

    consumers = inspect_cluster.list_consumers()
    if consumers is None:
        yield fail("the broker does not answer", "start it, or correct CELERY_BROKER_URL")
    elif not consumers:
        yield fail("no worker answers", "start one: moorage worker")
    else:
        yield ok(f"workers: {', '.join(consumers)}")
        for queue in (name for name, count in inspect_cluster.count_consumers(consumers).items() if not count):
            yield fail(f"no worker consumes the queue {queue}", f"start one: moorage worker -Q {queue}")
    try:
        yield from boot.get_deps().database.run(lambda conn: _check_beat(conn, set(schedule.sweep_periods(settings))))
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
