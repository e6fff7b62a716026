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
from tasks.jobs import cancel, retry
from tasks.jobs.cancel import ActionOutcome
from worker import boot, publish

ACTOR: Final = "cli"

Action = Callable[[Database, Settings, UUID, str], ActionOutcome]


@click.group()
def job() -> None:
    """Cancel or retry a job. ID is its id, or at least the first 8 characters of it if they are unique."""


@job.command("cancel")
@click.argument("name", metavar="ID")
@console.json_option
def cancel_job(name: str, as_json: bool) -> None:
    """Cancel an open or keeping job; what it has published remains."""
    _apply(name, cancel.cancel_job, as_json)


@job.command("retry")
@click.argument("name", metavar="ID")
@console.json_option
def retry_job(name: str, as_json: bool) -> None:
    """Retry a failed or partial job: replay its dead letters, or restart its fallback chain."""
    _apply(name, retry.retry_job, as_json)


def _apply(name: str, action: Action, as_json: bool) -> None:
    deps = boot.get_deps()
    found = deps.database.run(lambda conn: find_rows(conn, name, ()))
    job_ids = [match.id for match in found if match.subject == "job"]
    if len(job_ids) != 1:
        problem = "several jobs match" if job_ids else "no job matches"
        raise ConfigError(f"{problem} {console.escape_control_chars(name)}: see moorage list jobs")
    outcome = action(deps.database, deps.settings, job_ids[0], ACTOR)
    if outcome.refused is not None:
        raise ConfigError(f"job {job_ids[0]}: {outcome.refused}")
    unsent = len(outcome.wakes) - publish.publish_wakes(outcome.wakes) if outcome.wakes else 0
    if as_json:
        fields = {"job_id": job_ids[0], "state": outcome.after, "was": outcome.before, "replayed": outcome.replayed}
        console.print_json(fields)
        return
    replayed = f", {outcome.replayed} dead letters replayed" if outcome.replayed else ""
    click.echo(f"job {job_ids[0]} is {outcome.after}, it was {outcome.before}{replayed}")
    if unsent:
        click.echo("the broker is unavailable: processing starts when it is available again")
