"""`moorage job`: cancel or retry a job, as an application does over HTTP."""

from collections.abc import Callable
from typing import Final
from uuid import UUID

import click

from cli import console
from db.connection import Database
from db.reports.show import find_rows
from moorage.errors import ConfigError
from moorage.settings import Settings
from tasks.jobs import cancel, replay
from tasks.jobs.cancel import ActionOutcome
from worker import boot, publish

ACTOR: Final = "cli"

Action = Callable[[Database, Settings, UUID, str], ActionOutcome]


def find_job(database: Database, name: str) -> UUID:
    """Return the id of the job of which `name` is the beginning. Raises ConfigError."""
    found = database.run(lambda conn: find_rows(conn, name, ()))
    job_ids = [match.id for match in found if match.subject == "job"]
    if len(job_ids) != 1:
        problem = "several jobs match" if job_ids else "no job matches"
        raise ConfigError(f"{problem} {console.escape_control_chars(name)}: see moorage list jobs")
    return job_ids[0]


job_option = click.option(
    "--job", "job_id", metavar="ID", help="Filter by job: its id or the beginning of it.",
    callback=lambda _context, _option, name: name and find_job(boot.get_deps().database, name),
)  # fmt: skip


@click.group()
def job() -> None:
    """Cancel or retry a job. ID is its id, or at least the first 8 characters of it if they are unique."""


@job.command("cancel")
@click.argument("name", metavar="ID")
@console.json_option
def cancel_job(name: str) -> console.Output:
    """Cancel an open or keeping job; what it has published remains."""
    return _apply(name, cancel.cancel_job)


@job.command("retry")
@click.argument("name", metavar="ID")
@console.json_option
def retry_job(name: str) -> console.Output:
    """Retry a failed or partial job: replay its dead letters, or restart its fallback chain."""
    return _apply(name, replay.retry_job)


def _apply(name: str, action: Action) -> console.Output:
    deps = boot.get_deps()
    job_id = find_job(deps.database, name)
    outcome = action(deps.database, deps.settings, job_id, ACTOR)
    if outcome.refused is not None:
        raise ConfigError(f"job {job_id}: {outcome.refused}")
    sent = publish.publish_wakes(outcome.wakes)
    fields = {"job_id": job_id, "state": outcome.after, "was": outcome.before, "replayed": outcome.replayed}
    replayed = f", {outcome.replayed} dead letters replayed" if outcome.replayed else ""
    lines = [f"job {job_id} is {outcome.after}, it was {outcome.before}{replayed}"]
    return fields, lines if sent == len(outcome.wakes) else [*lines, console.BROKER_UNAVAILABLE]
