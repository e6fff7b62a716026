"""`moorage orphans`, `retention` and `owner`: what is removed. The first two are dry runs by default."""

import time
from collections.abc import Iterator
from typing import Final

import click

from cli import console
from db import erasures
from moorage.errors import ConfigError
from moorage.text import is_storable
from tasks import erasure, erasure_request
from tasks.sweeps.orphans import REASON_TEXTS, OrphanReport, scan_orphans
from tasks.sweeps.retention import count_expired, delete_expired, retention_seconds
from worker import boot

ACTOR: Final = "cli"
PAUSE_SECONDS: Final = 1.0
_KINDS: Final = {
    "renders": ("renders with their files", "MOORAGE_RETENTION_DAYS=renders="),
    "bodies": ("raw bodies of applied or ignored webhooks", "MOORAGE_RETENTION_DAYS=bodies="),
    "failed_bodies": ("raw bodies of dead deliveries", "MOORAGE_RETENTION_DAYS=bodies="),
    "failed_sources": ("inline bytes of dead outputs", "MOORAGE_RETENTION_DAYS=bodies="),
    "quarantine": ("refused files in quarantine", "MOORAGE_QUARANTINE_SECONDS"),
    "deliveries": ("ended deliveries", "MOORAGE_RETENTION_DAYS=rows="),
    "uploads": ("uploads that no open job names", "MOORAGE_RETENTION_DAYS=renders="),
    "deleted_uploads": ("rows of deleted uploads", "MOORAGE_RETENTION_DAYS=rows="),
    "open_dead_letters": ("open dead letters without bytes", "MOORAGE_RETENTION_DAYS=dead_letters="),
    "dead_letters": ("replayed dead letters", "MOORAGE_RETENTION_DAYS=rows="),
    "notifications": ("sent notifications, and dead ones that were discarded", "MOORAGE_RETENTION_DAYS=rows="),
    "jobs": ("failed jobs, and jobs of deleted renders", "MOORAGE_RETENTION_DAYS=rows="),
}
_DAY: Final = 86400.0


@click.command()
@click.option("--delete", is_flag=True, help="Quarantine orphans, and delete objects whose quarantine has ended.")
@console.json_option
def orphans(delete: bool) -> console.Output:
    """
    List the objects under moorage's prefixes that no row names, and the action of the next sweep.

    With --delete, orphans are copied to quarantine/ in the private bucket and deleted, at most 1,000 in a run.
    Quarantined objects are deleted after MOORAGE_QUARANTINE_SECONDS.
    """
    report = scan_orphans(boot.get_deps(), delete=delete)
    counts = {"looked_at": report.looked_at, "objects": report.objects, "bytes": report.bytes}
    document = {"deleted": delete, **counts, "listed": report.listed, "at_end": report.stopped_at is None}
    title = "Deleted or left" if delete else "Would be deleted or left (dry run; use --delete)"
    return document, _format_report(report, title)


def _format_report(report: OrphanReport, title: str) -> Iterator[console.Part]:
    yield f"checked {report.looked_at} objects"
    if report.listed:
        rows = [
            (item.bucket, item.key, item.bytes, f"{item.stored_at:%Y-%m-%d %H:%M}", REASON_TEXTS[item.reason])
            for item in report.listed
        ]
        yield console.build_table(title, ("bucket", "key", "bytes", "stored (UTC)", "reason"), rows)
    for reason, text in REASON_TEXTS.items():
        if report.objects[reason]:
            yield f"{report.objects[reason]} objects, {report.bytes[reason]} bytes: {text}"
    if not report.objects:
        yield "every object older than the age limit is named by a row"
    if report.objects.total() > len(report.listed):
        yield f"only the first {len(report.listed)} are listed"
    if report.stopped_at is not None:
        yield "stopped at the limit of a run: run it again for the rest"


@click.command()
@click.option("--apply", is_flag=True, help="Delete.")
@console.json_option
def retention(apply: bool) -> console.Output:
    """Count what exceeds the retention periods of the settings; delete it with --apply."""
    deps = boot.get_deps()
    counts = delete_expired(deps, ACTOR) if apply else count_expired(deps)
    limits = retention_seconds(deps.settings)
    rows = [
        (text, f"{limits[kind] / _DAY:g} days" if kind in limits else "forever", counts.get(kind), setting)
        for kind, (text, setting) in _KINDS.items()
    ]
    title = "Deleted" if apply else "Would be deleted (dry run; use --apply)"
    table = console.build_table(title, ("kind", "retained", "count", "setting"), rows)
    return {"applied": apply, "counts": counts}, [table]


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
