"""`moorage orphans`: objects that no row names and none ever will; a dry run unless told otherwise."""

from typing import Any

import click

from cli import console
from tasks.sweeps import orphans as sweep
from tasks.sweeps.orphans import REASON_TEXTS, OrphanReport
from worker import boot


@click.command()
@click.option("--delete", is_flag=True, help="Move them into the quarantine, and empty it of what is old.")
@console.json_option
def orphans(delete: bool, as_json: bool) -> None:
    """
    List the objects under our prefixes that no row names, and say which a sweep would take.

    With --delete they are taken, at most 1,000 in a run: copied into the private bucket under
    quarantine/ and deleted; what has been there longer than MOORAGE_QUARANTINE_SECONDS is deleted for good.
    """
    report = sweep.scan_orphans(boot.get_deps(), delete=delete)
    if as_json:
        console.print_json({"deleted": delete, **_plain(report)})
    else:
        _show(report, delete=delete)


def _plain(report: OrphanReport) -> dict[str, Any]:
    return {
        "looked_at": report.looked_at,
        "objects": dict(report.objects),
        "bytes": dict(report.bytes),
        "listed": report.listed,
        "at_end": report.stopped_at is None,
    }


def _show(report: OrphanReport, *, delete: bool) -> None:
    click.echo(f"looked at {report.looked_at} objects")
    if report.listed:
        rows = [
            (seen.bucket, seen.key, seen.bytes, f"{seen.stored_at:%Y-%m-%d %H:%M}", REASON_TEXTS[seen.reason])
            for seen in report.listed
        ]
        title = "Taken or left" if delete else "Would be taken or left (dry run; --delete takes them)"
        console.print_parts(console.build_table(title, ("bucket", "key", "bytes", "stored (UTC)", "why"), rows))
    for reason, why in REASON_TEXTS.items():
        if report.objects[reason]:
            click.echo(f"{report.objects[reason]} objects, {report.bytes[reason]} bytes: {why}")
    if not report.objects:
        click.echo("every object older than the age limit is named by a row")
    if sum(report.objects.values()) > len(report.listed):
        click.echo(f"only the first {len(report.listed)} are listed")
    if report.stopped_at is not None:
        click.echo("stopped at the limit of a run: run it again for the rest")
