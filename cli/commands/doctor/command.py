"""`moorage doctor`: check every setting and server, and say what to do."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import click

from cli import console
from cli.commands.doctor import checks, storage_checks
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
    """Check every setting and server, and say what to do. Exit status 1 when a check fails."""
    found = []
    for check in _checks():
        found.append(check)
        if not as_json:
            _tell(check)
    if as_json:
        console.print_json(found)
    if any(check.level == "fail" for check in found):
        raise SystemExit(1)


def _tell(check: CheckResult) -> None:
    advice = f"  ({check.advice})" if check.advice else ""
    click.echo(f"{check.level:<5} {console.escape_control_chars(check.what)}{console.escape_control_chars(advice)}")


def _checks() -> Iterator[CheckResult]:
    try:
        settings = settings_module.get_settings()
    except ConfigError as error:
        yield from (fail(line, "correct it; see .env.example") for line in str(error).splitlines())
        return
    yield ok("settings can be read")
    postgres = list(checks.check_postgres(settings))
    yield from postgres
    broker = list(checks.check_broker(settings))
    yield from broker
    yield from storage_checks.check_buckets(settings)
    yield from checks.check_provider_settings(settings)
    yield from checks.check_replicate_token(settings)
    yield from checks.check_public_url(settings)
    if not any(check.level == "fail" for check in (*postgres, *broker)):
        yield from _processes(settings)


def _processes(settings: Settings) -> Iterator[CheckResult]:
    """Check that a worker answers and that beat ticks; asked only when what they need is there."""
    from worker import inspect_cluster, schedule  # the app reads the settings: not before they are known to be right

    names = inspect_cluster.ping_workers()
    if names is None:
        yield fail("the broker does not answer", "start it, or correct CELERY_BROKER_URL")
    elif names:
        yield ok(f"workers that answer: {', '.join(names)}")
    else:
        yield fail("no worker answers", "start one: moorage worker")
    try:
        yield from boot.get_deps().database.run(lambda conn: _beat(conn, set(schedule.sweep_periods(settings))))
    except MoorageError as error:
        yield fail(f"beat: {error}", "see above")


def _beat(conn: Connection, sweeps: set[str]) -> list[CheckResult]:
    last = [row for row in ticks.list_latest(conn) if row["sweep"] in sweeps]
    newest: Row | None = max(last, key=lambda row: row["started_at"], default=None)
    at: datetime = current_time(conn)
    if newest is None or (at - newest["started_at"]).total_seconds() > LATE_SECONDS:
        told = format_age(newest["started_at"] if newest else None, at)
        return [fail(f"beat ticked last: {told}", "start one: moorage beat (and a worker for the queue quick)")]
    if missing := sorted(sweeps - {row["sweep"] for row in last}):
        return [warn(f"these sweeps never ran: {', '.join(missing)}", "look again in a minute")]
    return [ok(f"beat ticks: {format_age(newest['started_at'], at)}")]
