"""`moorage orphans`: list or delete objects that no row names. A dry run without --delete."""

from collections.abc import Iterator

import click

from cli import console
from tasks.sweeps.orphans import REASON_TEXTS, OrphanReport, scan_orphans
from worker import boot


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
