"""`moorage owner`: remove everything of an owner."""

import time
from typing import Final

import click

from cli import console
from db import erasures
from moorage.errors import ConfigError
from moorage.text import is_storable
from tasks import erasure, erasure_request
from worker import boot

ACTOR: Final = "cli"
PAUSE_SECONDS: Final = 1.0


@click.group()
def owner() -> None:
    """Remove an owner."""


@owner.command("erase")
@click.argument("name", metavar="OWNER")
@click.option("--yes", is_flag=True, help="Do not ask.")
@console.json_option
def erase_owner(name: str, yes: bool) -> console.Output:
    """
    Remove all rows, files, uploads, projects and tokens of an owner, and print what was removed.

    Waits up to ten minutes for predictions to be cancelled at their providers. If it is interrupted, the workers
    continue; so does the same command.
    """
    if not name or not is_storable(name):
        raise ConfigError("OWNER is not a name that can be stored")
    if not yes:
        click.confirm(f"Remove everything of {console.escape_control_chars(name)}? This cannot be undone", abort=True)
    deps = boot.get_deps()
    requested = erasure_request.request_erasure(deps.database, name)
    while (finished := erasure.continue_erasure(deps, requested, ACTOR)) is None:
        present = deps.database.run(lambda conn: erasures.get(conn, requested["id"]))
        if present is not None and present["finished_at"] is not None:  # by the workers
            finished = present
            break
        click.echo("waiting for locked rows, or for predictions to end at their providers", err=True)
        time.sleep(PAUSE_SECONDS)
    removed = finished["removed"]
    line = ", ".join(f"{count} {name}" for name, count in sorted(removed.items())) or "nothing"
    return {"erasure_id": requested["id"], "removed": removed}, [f"removed: {line}"]
